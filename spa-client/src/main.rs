//! The command `spa-client`; all of it is [`spa_client::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    spa_client::cli::main()
}
