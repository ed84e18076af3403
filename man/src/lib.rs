//! Manual pages: one for a program and one for each of its commands, made of what `--help` says.
//!
//! It knows no program: the command line comes in as clap has it.

use clap::Command;
use clap_mangen::Man;
use std::io::{self, Write as _};
use std::path::Path;

/// The part of the manual that a program belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// For everybody.
    UserCommands,
    /// For the administrator.
    SystemAdministration,
}

impl Section {
    const fn number(self) -> &'static str {
        match self {
            Self::UserCommands => "1",
            Self::SystemAdministration => "8",
        }
    }

    /// What stands at the top of each page.
    const fn title(self) -> &'static str {
        match self {
            Self::UserCommands => "User Commands",
            Self::SystemAdministration => "System Administration",
        }
    }
}

/// Writes the pages of `program` into `directory`, which is made if it is not there. Hidden commands
/// have none.
pub fn write(program: Command, section: Section, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let pages = Pages { program: program.get_name(), section, directory };
    pages.write(&program)
}

struct Pages<'a> {
    program: &'a str,
    section: Section,
    directory: &'a Path,
}

impl Pages<'_> {
    fn write(&self, command: &Command) -> io::Result<()> {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            self.write(sub)?;
        }
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        let file = format!("{name}.{}", self.section.number());
        std::fs::write(self.directory.join(file), self.page(command, name)?)
    }

    fn page(&self, command: &Command, name: &str) -> io::Result<Vec<u8>> {
        let version = env!("CARGO_PKG_VERSION");
        let (section, manual) = (self.section.number(), self.section.title());
        let man = Man::new(command.clone()).section(section);
        let mut page = Vec::new();
        let title = escaped(&name.to_uppercase());
        writeln!(page, ".TH \"{title}\" {section} \"\" \"spa {version}\" \"{manual}\"")?;
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
            // The heading says as much as `Example:` alone; not if there is more in it.
            let examples = ["Example:\n", "Examples:\n"]
                .into_iter()
                .find_map(|heading| examples.strip_prefix(heading))
                .unwrap_or(examples);
            verbatim(&mut page, "EXAMPLES", examples)?;
            filled(&mut page, "NOTES", notes)?;
        }
        if name != self.program {
            writeln!(page, ".SH \"SEE ALSO\"\n.BR {} ({section})", escaped(self.program))?;
        }
        Ok(page)
    }
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
