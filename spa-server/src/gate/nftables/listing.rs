//! The table as it stands, from what `nft -j list ruleset` prints; judged against what it should be.
//! Pure.
//!
//! Each version of `nft` prints rules in its own way, so they are not compared with the text that
//! they were made of. After an installation the table is read back, and digests of the text and of
//! what was read are left in it ([`Mark`]): as long as both fit, it is what was installed.

use super::render::{MARK, Ruleset, TABLE};
use super::shape::Shape;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use spa_proto::{PortRange, Transport};
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;

/// The version of what is in the table. A table of another one is made anew.
const VERSION: u32 = 1;
/// How many bytes of a digest are kept: against accidents, not against enemies.
const DIGEST_BYTES: usize = 8;

/// All that is in the table, but for the mark and the elements.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Listing {
    sets: BTreeMap<String, Value>,
    chains: BTreeMap<String, Listed>,
    mark: Option<Mark>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Default)]
struct Listed {
    definition: Value,
    rules: Vec<Value>,
}

/// What is written into the table, as the comment of the only rule in a chain that no packet goes
/// through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    version: u32,
    /// The digest of the text that the table was made of; empty while that is going on.
    wanted: String,
    /// The digest of what was read back.
    listed: String,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK} {} {}", self.version, self.wanted)?;
        if self.listed.is_empty() { Ok(()) } else { write!(f, " {}", self.listed) }
    }
}

impl Mark {
    /// Of a table that is being made.
    pub(super) const fn unfinished() -> Self {
        Self { version: VERSION, wanted: String::new(), listed: String::new() }
    }

    fn parse(comment: &str) -> Option<Self> {
        let mut words = comment.strip_prefix(MARK)?.split(' ').skip(1);
        let version = words.next()?.parse().ok()?;
        let mut word = || words.next().unwrap_or_default().to_owned();
        Some(Self { version, wanted: word(), listed: word() })
    }
}

impl Listing {
    /// Finds the table in what `nft -j list ruleset` or `list table` prints; `None` if it isn't there.
    pub(super) fn parse(json: &str) -> Result<Option<Self>, String> {
        let mut listing = Self::default();
        let mut is_there = false;
        for object in objects(json)? {
            let Some((kind, value)) = object.as_object().and_then(|object| object.iter().next())
            else {
                continue;
            };
            let field = |key| text(value, key);
            if kind == "table" && format!("{} {}", field("family"), field("name")) == TABLE {
                is_there = true;
            }
            if format!("{} {}", field("family"), field("table")) != TABLE {
                continue;
            }
            let name = field(if kind == "rule" { "chain" } else { "name" });
            if name == MARK {
                let mark = Mark::parse(field("comment")).or(listing.mark);
                listing.mark = mark.or_else(|| (kind == "chain").then(Mark::unfinished));
                continue;
            }
            let mut value = value.clone();
            if let Some(fields) = value.as_object_mut() {
                fields.retain(|key, _| !matches!(key.as_str(), "handle" | "elem"));
            }
            match kind.as_str() {
                "chain" => listing.chains.entry(name.to_owned()).or_default().definition = value,
                "rule" => listing.chains.entry(name.to_owned()).or_default().rules.push(value),
                _ => drop(listing.sets.insert(name.to_owned(), value)),
            }
        }
        Ok(is_there.then_some(listing))
    }

    /// Whether the table is the gate's.
    pub(super) const fn is_ours(&self) -> bool {
        self.mark.is_some()
    }

    /// Whether it is what was made of this text, and nothing was changed since.
    pub(super) fn holds(&self, wanted: &Ruleset) -> bool {
        self.mark.as_ref() == Some(&self.mark_of(wanted))
    }

    /// The mark of this table when it was just made.
    pub(super) fn mark_of(&self, wanted: &Ruleset) -> Mark {
        Mark { version: VERSION, wanted: digest(&wanted.to_string()), listed: self.digest() }
    }

    fn digest(&self) -> String {
        digest(&format!("{:?}{:?}", self.sets, self.chains))
    }

    /// The names of its chains.
    pub(super) fn chains(&self) -> impl Iterator<Item = &str> {
        self.chains.keys().map(String::as_str)
    }

    /// The names of the sets that are not as they are wanted, or not wanted at all.
    pub(super) fn outdated_sets(&self, wanted: &Ruleset) -> Vec<&str> {
        let is_of_this_version = self.mark.as_ref().is_some_and(|mark| mark.version == VERSION);
        let is_wanted = |name: &str| {
            let set = wanted.sets.iter().find(|set| set.name == name);
            is_of_this_version && set.is_some_and(|set| set.size == self.size(name))
        };
        self.sets().filter(|name| !is_wanted(name)).collect()
    }

    /// The names of its sets.
    pub(super) fn sets(&self) -> impl Iterator<Item = &str> {
        self.sets.keys().map(String::as_str)
    }

    /// What elements it may hold.
    pub(super) fn shapes(&self) -> impl Iterator<Item = Shape> {
        self.sets().filter_map(Shape::parse)
    }

    /// How many elements one of its sets has room for.
    pub(super) fn size(&self, set: &str) -> Option<u32> {
        let size = self.sets.get(set)?.get("size")?.as_u64()?;
        u32::try_from(size).ok()
    }

    /// Whether it judges packets, for which connections have to be tracked.
    pub(super) fn judges(&self) -> bool {
        self.chains.get("judge").is_some_and(|judge| !judge.rules.is_empty())
    }

    /// The ports whose packets it judges.
    pub(super) fn guarded(&self) -> Vec<PortRange> {
        if !self.judges() {
            return Vec::new();
        }
        let rules = self.chains.get("prerouting").map_or(&[][..], |chain| &chain.rules);
        rules
            .iter()
            .filter(|rule| goes_to(rule, "judge"))
            .filter_map(|rule| rule.get("expr")?.as_array()?.first()?.get("match"))
            .flat_map(matched)
            .collect()
    }

    /// In what it differs from a table that it should be, as an administrator would call it.
    pub(super) fn differences(&self, wanted: &Ruleset) -> Vec<String> {
        let mut found = Vec::new();
        for set in &wanted.sets {
            if !self.sets.contains_key(&set.name) {
                found.push(format!("set {} is missing", set.name));
            } else if set.size.is_some() && self.size(&set.name) != set.size {
                found.push(format!("set {} has another size", set.name));
            }
        }
        for chain in &wanted.chains {
            match self.chains.get(&chain.name) {
                None => found.push(format!("chain {} is missing", chain.name)),
                Some(listed) => found.extend(count(&chain.name, listed, chain.rules.len())),
            }
        }
        if found.is_empty() && !self.holds(wanted) {
            found.push(
                "the rules are not those that this program makes of its configuration".to_owned(),
            );
        }
        found.iter().map(|what| in_table(what)).collect()
    }

    /// What of this table, as it was read once, is missing or changed in another reading.
    pub(super) fn missing_in(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, set) in &self.sets {
            match now.sets.get(name) {
                None => found.push(format!("set {name} is missing")),
                Some(other) if other != set => found.push(format!("set {name} is another one")),
                Some(_) => {}
            }
        }
        for (name, chain) in &self.chains {
            let Some(listed) = now.chains.get(name) else {
                found.push(format!("chain {name} is missing"));
                continue;
            };
            if let Some(differs) = count(name, listed, chain.rules.len()) {
                found.push(differs);
            } else if listed.rules != chain.rules {
                found.push(format!("chain {name} has other rules"));
            } else if listed.definition != chain.definition {
                found.push(format!("chain {name} is another one"));
            }
        }
        // A base chain of somebody else's in our table sees packets, too.
        for name in now.chains().filter(|name| !self.chains.contains_key(*name)) {
            found.push(format!("chain {name} is not the gate's"));
        }
        found.iter().map(|what| in_table(what)).collect()
    }
}

/// What is in the table, as an administrator would call it.
pub(super) fn in_table(what: &str) -> String {
    format!("{what} in table {TABLE}")
}

fn count(name: &str, listed: &Listed, wanted: usize) -> Option<String> {
    let found = listed.rules.len();
    (found != wanted).then(|| format!("chain {name} has {found} rules of {wanted}"))
}

fn objects(json: &str) -> Result<Vec<Value>, String> {
    let listed: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    match listed {
        Value::Object(mut fields) => match fields.remove("nftables") {
            Some(Value::Array(objects)) => Ok(objects),
            _ => Err("no list named nftables".to_owned()),
        },
        _ => Err("no object".to_owned()),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn digest(text: &str) -> String {
    use fmt::Write as _;
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(DIGEST_BYTES).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn goes_to(rule: &Value, chain: &str) -> bool {
    let statements = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
    statements.filter_map(|one| one.get("goto")).any(|goto| text(goto, "target") == chain)
}

/// The ports that a match chooses: one, several of their own, or a range.
fn matched(matching: &Value) -> Vec<PortRange> {
    let Some(right) = matching.get("right") else { return Vec::new() };
    let payload = matching.get("left").and_then(|left| left.get("payload"));
    if let Some(transport) = payload.and_then(|payload| transport_of(payload.get("protocol")?)) {
        return ports(transport, right).into_iter().collect();
    }
    // `{"concat": ["tcp", 22]}`
    let concatenated = |value: &Value| match value.get("concat")?.as_array()?.as_slice() {
        [transport, numbers] => ports(transport_of(transport)?, numbers),
        _ => None,
    };
    match right.get("set").and_then(Value::as_array) {
        Some(several) => several.iter().filter_map(concatenated).collect(),
        None => concatenated(right).into_iter().collect(),
    }
}

/// `22`, `{"range": [10000, 10100]}`
fn ports(transport: Transport, numbers: &Value) -> Option<PortRange> {
    match numbers.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        Some([first, last]) => PortRange::new(transport, number(first)?, number(last)?),
        _ => PortRange::new(transport, number(numbers)?, number(numbers)?),
    }
}

fn transport_of(value: &Value) -> Option<Transport> {
    match (value.as_str(), value.as_u64()) {
        (Some("tcp"), _) | (_, Some(6)) => Some(Transport::Tcp),
        (Some("udp"), _) | (_, Some(17)) => Some(Transport::Udp),
        _ => None,
    }
}

fn number(value: &Value) -> Option<NonZeroU16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).and_then(NonZeroU16::new)
}

#[cfg(test)]
mod tests;
