//! An error and all that caused it, in one line: for the log, and for whoever asked.

use std::error::Error;

/// `error: its cause: the cause of that`.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
