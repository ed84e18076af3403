//! What a command of the administrator's is given: its arguments and its environment. Pure.
//!
//! No shell is between, and every value is a number, an address or a word of a fixed list: what
//! stands in a knock can't become an option, a second argument or a command.

use crate::gate::types::{Element, Family};
use crate::service::{Forward, ForwardTo, Target};
use std::fmt;
use std::path::{Path, PathBuf};

/// The search path of the commands: fixed, since ours can be set by whoever starts us.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A program and its arguments, with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    program: PathBuf,
    arguments: Vec<String>,
}

/// Why a list of texts is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// There is nothing in it.
    #[error(
        "the list is empty; write the program and its arguments, as in [\"/usr/local/sbin/open-port\"]"
    )]
    Empty,
    /// A program that would have to be looked for.
    #[error("{0:?} is a relative path; write it out from the root, beginning with /")]
    RelativePath(PathBuf),
    /// What looks like a placeholder and is none.
    #[error("{0} is no placeholder; there are {list}", list = Placeholder::list())]
    Placeholder(String),
    /// No system call takes it.
    #[error("{0:?} holds a zero byte")]
    Zero(String),
}

/// What a command is run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// To let the source in.
    Open,
    /// To let it in for another time than before.
    Refresh,
    /// To let it in no longer.
    Close,
}

impl Action {
    /// As `SPA_ACTION` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Refresh => "refresh",
            Self::Close => "close",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One occasion to run a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Occasion {
    pub(super) action: Action,
    pub(super) element: Element,
    pub(super) target: Target,
    /// For how long; 0 to close.
    pub(super) seconds: u32,
}

impl CommandLine {
    /// Judges a list of texts: the program, then its arguments.
    ///
    /// # Errors
    ///
    /// It is empty, the program is a relative path, or an argument holds a word in braces that is
    /// no placeholder.
    pub fn parse(words: &[String]) -> Result<Self, CommandLineError> {
        if let Some(word) = words.iter().find(|word| word.contains('\0')) {
            return Err(CommandLineError::Zero(word.clone()));
        }
        let (program, arguments) = words.split_first().ok_or(CommandLineError::Empty)?;
        let program = PathBuf::from(program);
        if !program.is_absolute() {
            return Err(CommandLineError::RelativePath(program));
        }
        for argument in arguments {
            if let Some(unknown) = unknown_placeholder(argument) {
                return Err(CommandLineError::Placeholder(unknown.to_owned()));
            }
        }
        Ok(Self { program, arguments: arguments.to_vec() })
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    pub(super) fn arguments(&self, occasion: &Occasion) -> Vec<String> {
        let fill = |argument: &String| {
            Placeholder::ALL.into_iter().fold(argument.clone(), |text, placeholder| {
                text.replace(placeholder.as_str(), &placeholder.value(occasion))
            })
        };
        self.arguments.iter().map(fill).collect()
    }
}

/// As it would be typed, placeholders and all.
impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {argument}"))
    }
}

/// What stands for something else in an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    Action,
    Source,
    Protocol,
    Port,
    PortLast,
    Seconds,
}

impl Placeholder {
    const ALL: [Self; 6] =
        [Self::Action, Self::Source, Self::Protocol, Self::Port, Self::PortLast, Self::Seconds];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Action => "{action}",
            Self::Source => "{source}",
            Self::Protocol => "{protocol}",
            Self::Port => "{port}",
            Self::PortLast => "{port-last}",
            Self::Seconds => "{seconds}",
        }
    }

    fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }

    fn value(self, occasion: &Occasion) -> String {
        let ports = occasion.element.ports;
        match self {
            Self::Action => occasion.action.to_string(),
            Self::Source => occasion.element.source.to_string(),
            Self::Protocol => ports.transport().to_string(),
            Self::Port => ports.first().to_string(),
            Self::PortLast => ports.last().to_string(),
            Self::Seconds => occasion.seconds.to_string(),
        }
    }
}

/// A word of letters and hyphens between braces that stands for nothing. Other braces are text:
/// nft wants them.
fn unknown_placeholder(argument: &str) -> Option<&str> {
    let starts = argument.match_indices('{').map(|(at, _)| at);
    starts
        .filter_map(|at| {
            let rest = argument.get(at..)?;
            let word = rest.get(..=rest.find('}')?)?;
            let name = word.get(1..word.len().saturating_sub(1))?;
            let is_word = !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphabetic() || b"-_".contains(&byte));
            is_word.then_some(word)
        })
        .find(|word| Placeholder::ALL.iter().all(|known| known.as_str() != *word))
}

/// The whole environment: every variable is always there, and empty where it means nothing.
pub(super) fn environment(occasion: &Occasion) -> Vec<(&'static str, String)> {
    let Occasion { action, element, target, seconds } = *occasion;
    let family = Family::of(element.source.address());
    let (kind, to, masquerade) = match target {
        Target::Here => ("here", None, false),
        Target::LocalPort(_) => ("local-port", None, false),
        Target::Forward(forward) => ("forward", forward_of(&forward, family), forward.masquerade),
    };
    let target_port = match target {
        Target::LocalPort(port) => Some(port),
        _ => to.and_then(|to| to.port),
    };
    let text = |value: Option<String>| value.unwrap_or_default();
    vec![
        ("PATH", PATH.into()),
        ("LC_ALL", "C".into()),
        ("SPA_ACTION", action.to_string()),
        ("SPA_SOURCE", element.source.to_string()),
        (
            "SPA_FAMILY",
            match family {
                Family::V4 => "ipv4",
                Family::V6 => "ipv6",
            }
            .into(),
        ),
        ("SPA_PROTOCOL", element.ports.transport().to_string()),
        ("SPA_PORT", element.ports.first().to_string()),
        ("SPA_PORT_LAST", element.ports.last().to_string()),
        ("SPA_SECONDS", seconds.to_string()),
        ("SPA_TARGET", kind.into()),
        ("SPA_TARGET_ADDRESS", text(to.map(|to| to.address.to_string()))),
        ("SPA_TARGET_PORT", text(target_port.map(|port| port.to_string()))),
        ("SPA_TARGET_MASQUERADE", if masquerade { "yes" } else { "no" }.into()),
    ]
}

const fn forward_of(forward: &Forward, family: Family) -> Option<ForwardTo> {
    match family {
        Family::V4 => forward.v4,
        Family::V6 => forward.v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU16;

    fn parse(words: &[&str]) -> Result<CommandLine, CommandLineError> {
        CommandLine::parse(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
    }

    fn occasion(source: &str, ports: &str, target: Target) -> Occasion {
        let element = Element { source: source.parse().unwrap(), ports: ports.parse().unwrap() };
        Occasion { action: Action::Open, element, target, seconds: 30 }
    }

    #[test]
    fn placeholders_are_filled_inside_single_arguments() {
        let line = parse(&[
            "/usr/sbin/nft",
            "{action}",
            "{ {source} . {protocol} . {port}-{port-last} timeout {seconds}s }",
            "{source}{source}",
            "plain; $(reboot)",
        ])
        .unwrap();
        let filled = line.arguments(&occasion("2001:db8::/64", "udp/10-20", Target::Here));
        assert_eq!(
            filled,
            [
                "open",
                "{ 2001:db8::/64 . udp . 10-20 timeout 30s }",
                "2001:db8::/642001:db8::/64",
                "plain; $(reboot)",
            ]
        );
        assert_eq!(line.program(), Path::new("/usr/sbin/nft"));
    }

    #[test]
    fn what_is_no_command_is_told() {
        for (words, error) in [
            (&[][..], "the list is empty; write the program"),
            (&["sh", "-c", "true"], "\"sh\" is a relative path; write it out from the root"),
            (&["/bin/x", "{src}"], "{src} is no placeholder; there are {action}, {source}, "),
            (&["/bin/x", "{ {port} {Port} }"], "{Port} is no placeholder"),
            (&["/bin/x", "a\0b"], "\"a\\0b\" holds a zero byte"),
        ] {
            let told = parse(words).unwrap_err().to_string();
            assert!(told.starts_with(error), "{told}");
        }
        for fine in ["{}", "{ }", "}{", "{0}", "{a b}", "{", "${source}"] {
            assert!(parse(&["/bin/x", fine]).is_ok(), "{fine}");
        }
    }

    #[test]
    fn the_environment_says_everything_that_is_known() {
        let shown = |occasion: &Occasion| {
            let lines =
                environment(occasion).into_iter().map(|(name, value)| format!("{name}={value}\n"));
            lines.collect::<String>()
        };
        insta::assert_snapshot!(shown(&occasion("192.0.2.7", "tcp/22", Target::Here)), @"
        PATH=/usr/sbin:/usr/bin:/sbin:/bin
        LC_ALL=C
        SPA_ACTION=open
        SPA_SOURCE=192.0.2.7
        SPA_FAMILY=ipv4
        SPA_PROTOCOL=tcp
        SPA_PORT=22
        SPA_PORT_LAST=22
        SPA_SECONDS=30
        SPA_TARGET=here
        SPA_TARGET_ADDRESS=
        SPA_TARGET_PORT=
        SPA_TARGET_MASQUERADE=no
        ");
        let forward = Target::Forward(Forward {
            v4: None,
            v6: Some(ForwardTo { address: "fd00::5".parse().unwrap(), port: NonZeroU16::new(443) }),
            masquerade: true,
        });
        insta::assert_snapshot!(shown(&occasion("2001:db8::/64", "udp/10-20", forward)), @"
        PATH=/usr/sbin:/usr/bin:/sbin:/bin
        LC_ALL=C
        SPA_ACTION=open
        SPA_SOURCE=2001:db8::/64
        SPA_FAMILY=ipv6
        SPA_PROTOCOL=udp
        SPA_PORT=10
        SPA_PORT_LAST=20
        SPA_SECONDS=30
        SPA_TARGET=forward
        SPA_TARGET_ADDRESS=fd00::5
        SPA_TARGET_PORT=443
        SPA_TARGET_MASQUERADE=yes
        ");
        let local = occasion("192.0.2.7", "tcp/22", Target::LocalPort(NonZeroU16::MIN));
        assert!(
            shown(&local)
                .contains("SPA_TARGET=local-port\nSPA_TARGET_ADDRESS=\nSPA_TARGET_PORT=1\n")
        );
    }
}
