//! `spa-client ssh`: the system's ssh, with this very program as its way to the server.

use super::CliError;
use crate::system;
use clap::Args;
use std::ffi::{OsStr, OsString};
use std::process::{Command, ExitCode};

/// The options of ssh(1) that take a value.
const WITH_VALUE: &str = "BbcDEeFIiJLlmOoPpQRSWw";

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  spa-client ssh me@gateway.example.org
  spa-client ssh -p 2222 work uptime

Runs ssh with ProxyCommand set to `spa-client proxy`: it knocks where needed, and connects as soon
as the port is open. The host is that of a configured server, or the server's name. All words go
to ssh as they are; -v tells of knocks, too. To have plain ssh, scp, git and others knock by
themselves: spa-client setup ssh.")]
pub(super) struct SshArgs {
    /// The words of ssh(1).
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

pub(super) fn run(args: &SshArgs) -> Result<ExitCode, CliError> {
    let given = Given::read(&args.words);
    if let Some(other) = given.other_way {
        return Err(CliError::Usage(format!(
            "{other} is a way to the server of its own, and so is that of `spa-client ssh`; have the host that is connected to first knocked on by ~/.ssh/config (spa-client setup ssh), and run plain ssh"
        )));
    }
    let mut proxy = own_program()?;
    proxy.push_str(" proxy");
    if let Some(family) = given.family {
        proxy.push(' ');
        proxy.push_str(family);
    }
    if given.verbose {
        proxy.push_str(" --verbose");
    }
    let mut command = Command::new("ssh");
    if system::HANDS_OVER {
        proxy.push_str(" --fdpass");
        command.args(["-o", "ProxyUseFdpass=yes"]);
    }
    command.arg("-o").arg(format!("ProxyCommand={proxy} %h %p")).args(&args.words);
    match system::become_program(&mut command) {
        Ok(status) => Ok(ExitCode::from(system::exit_code(status))),
        Err(error) => Err(CliError::Failed(format!(
            "can't run ssh ({}); is OpenSSH's client installed?",
            crate::knock::plain(&error)
        ))),
    }
}

/// This program, as a word for the shell in a value of ssh's configuration.
pub(super) fn own_program() -> Result<String, CliError> {
    let path = std::env::current_exe().map_err(|error| {
        CliError::Failed(format!("can't find this very program ({})", crate::knock::plain(&error)))
    })?;
    let path = path.to_str().ok_or_else(|| {
        CliError::Failed(format!(
            "ssh can't be told to run {}, whose name is no text; install it elsewhere",
            path.display()
        ))
    })?;
    Ok(quoted(path))
}

/// A word for the shell that ssh starts, which expands `%` before.
fn quoted(path: &str) -> String {
    let path = path.replace('%', "%%");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+%".contains(c);
    if path.chars().all(is_plain) {
        path
    } else if cfg!(windows) {
        format!("\"{path}\"")
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

/// What of ssh's words concerns the way to the server.
#[derive(Debug, PartialEq, Eq, Default)]
struct Given {
    family: Option<&'static str>,
    verbose: bool,
    other_way: Option<String>,
}

impl Given {
    fn read(words: &[OsString]) -> Self {
        let mut given = Self::default();
        let mut words = words.iter().map(OsString::as_os_str);
        // ssh takes options after the host, too, but none after the first word of the command.
        let mut hosts = 0;
        while let Some(word) = words.next() {
            let word = word.to_string_lossy();
            let Some(letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                hosts += 1;
                if hosts > 1 {
                    break;
                }
                continue;
            };
            if letters == "-" {
                break;
            }
            for (at, letter) in letters.char_indices() {
                match letter {
                    '4' => given.family = Some("-4"),
                    '6' => given.family = Some("-6"),
                    'v' => given.verbose = true,
                    _ => {}
                }
                if WITH_VALUE.contains(letter) {
                    let rest: String = letters.chars().skip(at.saturating_add(1)).collect();
                    let value = if rest.is_empty() {
                        words.next().map(OsStr::to_string_lossy).unwrap_or_default().into_owned()
                    } else {
                        rest
                    };
                    given.option(letter, &value);
                    break;
                }
            }
        }
        given
    }

    fn option(&mut self, letter: char, value: &str) {
        let key = value.trim_start().split(['=', ' ', '\t']).next().unwrap_or_default();
        let is = |name: &str| key.eq_ignore_ascii_case(name);
        if letter == 'J' || (letter == 'o' && (is("ProxyCommand") || is("ProxyJump"))) {
            self.other_way = Some(format!("-{letter} {value}"));
        }
        if letter == 'o' && is("AddressFamily") {
            let family = value.to_ascii_lowercase();
            self.family = match family {
                _ if family.ends_with("inet6") => Some("-6"),
                _ if family.ends_with("inet") => Some("-4"),
                _ => self.family,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(line: &str) -> Given {
        Given::read(&line.split(' ').map(Into::into).collect::<Vec<_>>())
    }

    #[test]
    fn the_address_family_is_read_as_ssh_reads_it() {
        for (line, family) in [
            ("work", None),
            ("-4 work", Some("-4")),
            ("work -6", Some("-6")),
            ("-vv6p 22 me@work", Some("-6")),
            ("-p 4 work", None),
            ("-p4 work", None),
            ("-l -4 work", None),
            ("-o AddressFamily=inet work", Some("-4")),
            ("-oaddressfamily=inet6 work", Some("-6")),
            ("work ls -4", None),
            ("-- work", None),
        ] {
            assert_eq!(given(line).family, family, "{line}");
        }
    }

    #[test]
    fn who_wants_to_hear_all_of_ssh_hears_of_knocks_too() {
        for (line, verbose) in [
            ("-v work", true),
            ("work -4vv", true),
            ("work", false),
            ("-lv work", false),
            ("work ls -v", false),
        ] {
            assert_eq!(given(line).verbose, verbose, "{line}");
        }
    }

    #[test]
    fn another_way_to_the_server_is_noticed() {
        for line in ["-J jump work", "-Jjump work", "-o proxycommand=nc work", "-oProxyJump=a work"]
        {
            assert!(given(line).other_way.is_some(), "{line}");
        }
        for line in ["work", "-o Port=22 work", "work ssh -J jump", "-l J work"] {
            assert_eq!(given(line).other_way, None, "{line}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_path_is_one_word_to_the_shell() {
        assert_eq!(quoted("/usr/bin/spa-client"), "/usr/bin/spa-client");
        assert_eq!(quoted("/My Programs/it's/100%"), r"'/My Programs/it'\''s/100%%'");
    }
}
