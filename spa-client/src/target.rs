//! What a command line names: `ssh`, `tcp/8022`, `ssh@work`.

use crate::server::{ServerName, ServerNameError};
use core::fmt;
use core::str::FromStr;
use spa_proto::{Item, ItemError};

/// A service or port, and the server that has it; `None`: the default one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What is to be opened.
    pub item: Item,
    /// Where, when it says so.
    pub server: Option<ServerName>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.item.fmt(f)?;
        self.server.iter().try_for_each(|server| write!(f, "@{server}"))
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (item, server) = match text.split_once('@') {
            Some((item, server)) => (item, Some(server.parse()?)),
            None => (text, None),
        };
        Ok(Self { item: item.parse()?, server })
    }
}

/// Why a text is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Before the `@`.
    #[error(transparent)]
    Item(#[from] ItemError),
    /// After the `@`.
    #[error(transparent)]
    Server(#[from] ServerNameError),
}

/// The items of each server, servers and items in the order in which they were named. A target
/// without a server belongs to `default`.
pub(crate) fn by_server<'a>(
    targets: &'a [Target],
    default: Option<&'a ServerName>,
) -> Vec<(Option<&'a ServerName>, Vec<Item>)> {
    let mut groups: Vec<(Option<&ServerName>, Vec<Item>)> = Vec::new();
    for target in targets {
        let server = target.server.as_ref().or(default);
        match groups.iter_mut().find(|(known, _)| *known == server) {
            Some((_, items)) => items.push(target.item.clone()),
            None => groups.push((server, vec![target.item.clone()])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(texts: &[&str]) -> Vec<Target> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn targets_are_written_as_they_are_read() {
        for text in ["ssh", "tcp/8022", "ssh@work", "udp/53@home.example", "web-2@Home_1"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_target_is_told_by_its_wrong_half() {
        for text in ["", "SSH", "@work", "tcp/0", "tcp/65536", "tcp/", "22", "user name"] {
            assert!(matches!(text.parse::<Target>(), Err(TargetError::Item(_))), "{text}");
        }
        for text in ["ssh@", "ssh@a b", "ssh@a@b", "ssh@-x", "tcp/22@a/b"] {
            assert!(matches!(text.parse::<Target>(), Err(TargetError::Server(_))), "{text}");
        }
    }

    #[test]
    fn targets_are_gathered_by_server_in_the_order_named() {
        let given = targets(&["ssh@b", "web", "ssh@a", "tcp/1@b", "dns"]);
        let [a, b] = ["a", "b"].map(|name| name.parse::<ServerName>().unwrap());
        let shown = |groups: Vec<(Option<&ServerName>, Vec<Item>)>| {
            groups
                .into_iter()
                .map(|(server, items)| {
                    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                    format!("{}: {}", server.map_or("-", ServerName::as_str), items.join(" "))
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(shown(by_server(&given, None)), ["b: ssh tcp/1", "-: web dns", "a: ssh"]);
        assert_eq!(shown(by_server(&given, Some(&a))), ["b: ssh tcp/1", "a: web ssh dns"]);
        assert_eq!(shown(by_server(&given, Some(&b))), ["b: ssh web tcp/1 dns", "a: ssh"]);
    }
}
