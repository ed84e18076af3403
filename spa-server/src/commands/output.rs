//! Writes results to standard output.

use super::{CommandError, Done};
use serde::Serialize;
use std::io::{self, Write as _};

/// Writes `text` as it is.
pub(super) fn print(text: &str) -> Done {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CommandError::Output)
}

/// Writes `value` as JSON, for programs and for people.
pub(super) fn print_json(value: &impl Serialize) -> Done {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| CommandError::Output(error.into()))?;
    print(&format!("{text}\n"))
}

/// Columns, as wide as what is in them; the last one ends where its text ends.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["NAME", "STATE"], ["laptop", "enabled"], ["x", ""]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
        assert_eq!(table(&rows), "NAME    STATE\nlaptop  enabled\nx\n");
        assert_eq!(table(&[]), "");
    }
}
