//! The program `spa-server`; what it does is in the library.

fn main() -> std::process::ExitCode {
    spa_server::cli::main()
}
