//! The hidden `spa-client man`: a manual page for the program and one for each of its commands,
//! made of what `--help` says.

use super::CliError;
use super::args::Cli;
use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The directory to write the pages to.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn run(args: &ManArgs) -> Result<(), CliError> {
    let failed = |error: io::Error| {
        CliError::Failed(format!("can't write to {}: {error}", args.directory.display()))
    };
    std::fs::create_dir_all(&args.directory).map_err(failed)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, &args.directory).map_err(failed)
}

fn pages(command: &Command, directory: &Path) -> io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        pages(sub, directory)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    std::fs::write(directory.join(format!("{name}.1")), page(command, name)?)
}

fn page(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command.clone()).section("1");
    let mut page = Vec::new();
    let title = escaped(&name.to_uppercase());
    writeln!(page, ".TH \"{title}\" 1 \"\" \"spa {version}\" \"User Commands\"")?;
    man.render_name_section(&mut page)?;
    // As the help has it: with the values of what must be there, without all that may be.
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").lines().map(|line| escaped(line.trim()));
    writeln!(page, ".SH SYNOPSIS\n{}", usage.collect::<Vec<_>>().join("\n.br\n"))?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(text) = command.get_after_help() {
        let text = text.to_string();
        let (examples, notes) = match text.split_once("\n\n") {
            Some((first, rest)) if first.starts_with("Example") => (first, rest),
            None if text.starts_with("Example") => (text.as_str(), ""),
            _ => ("", text.as_str()),
        };
        let examples = examples.split_once('\n').map_or("", |(_, lines)| lines);
        verbatim(&mut page, "EXAMPLES", examples)?;
        filled(&mut page, "NOTES", notes)?;
    }
    if name != "spa-client" {
        writeln!(page, ".SH \"SEE ALSO\"\n.BR spa\\-client (1)")?;
    }
    Ok(page)
}

/// Line by line as it stands: indented examples don't bear being filled.
fn verbatim(page: &mut Vec<u8>, heading: &str, text: &str) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    writeln!(page, ".SH {heading}\n.nf")?;
    for line in text.lines() {
        writeln!(page, "{}", escaped(line))?;
    }
    writeln!(page, ".fi")
}

/// Paragraphs, as wide as the reader's terminal; what is indented stays as it is.
fn filled(page: &mut Vec<u8>, heading: &str, text: &str) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    writeln!(page, ".SH {heading}")?;
    for line in text.lines() {
        match line {
            "" => writeln!(page, ".PP")?,
            indented if line.starts_with(' ') => {
                writeln!(page, ".br\n.nf\n{}\n.fi", escaped(indented))?;
            }
            end if line.ends_with('.') => writeln!(page, "{}\n.br", escaped(end))?,
            _ => writeln!(page, "{}", escaped(line))?,
        }
    }
    Ok(())
}

/// What roff would take for a request, or typeset instead of printing it.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\(rs").replace('-', "\\-").replace('~', "\\(ti");
    let line = line.replace('\'', "\\(aq").replace('`', "\\(ga").replace('^', "\\(ha");
    if line.starts_with('.') { format!("\\&{line}") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_roff_would_obey_or_typeset_is_printed_as_it_stands() {
        assert_eq!(escaped(".TH x"), "\\&.TH x");
        assert_eq!(escaped("'so x"), "\\(aqso x");
        assert_eq!(escaped("a-b \\ ~/c"), "a\\-b \\(rs \\(ti/c");
    }
}
