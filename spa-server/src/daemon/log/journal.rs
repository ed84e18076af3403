//! Entries of the log as the journal takes them. Pure.

use super::entry::Entry;
use tracing::Level;

/// A message is cut beyond this: an entry has to fit into a datagram.
const LONGEST: usize = 32 * 1024;
/// The journal takes no longer name of a field.
const LONGEST_NAME: usize = 64;

/// An entry in the native protocol of the journal (systemd.io, "Native Journal Protocol"). What the audit
/// trail says in pairs are fields that begin with `SPA_`.
pub(super) fn entry(entry: &Entry<'_>) -> Vec<u8> {
    // As syslog(3) has them; what is usual is a notice.
    let priority = match entry.level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 5,
        Level::DEBUG => 6,
        Level::TRACE => 7,
    };
    let (target, message) = (entry.target, entry.message);
    let message = message.get(..message.floor_char_boundary(LONGEST)).unwrap_or(message);
    let mut lines = format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=spa-server\nTARGET={target}\n")
        .into_bytes();
    field(&mut lines, "MESSAGE", message);
    for (key, value) in entry.pairs() {
        let name = format!("SPA_{}", key.to_ascii_uppercase().replace('-', "_"));
        // Of a longer one the message has what there is room for.
        if value.len() <= LONGEST && name.len() <= LONGEST_NAME {
            field(&mut lines, &name, &value);
        }
    }
    lines
}

/// With its length, so that no line break in it begins another field.
fn field(lines: &mut Vec<u8>, name: &str, value: &str) {
    lines.extend_from_slice(name.as_bytes());
    lines.push(b'\n');
    lines.extend_from_slice(&u64::try_from(value.len()).unwrap_or(u64::MAX).to_le_bytes());
    lines.extend_from_slice(value.as_bytes());
    lines.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(level: Level, target: &str, message: &str) -> Vec<u8> {
        super::entry(&Entry { at: jiff::Timestamp::UNIX_EPOCH, level, target, message })
    }

    #[test]
    fn the_audit_trail_has_its_pairs_as_fields() {
        let shown = |target: &str, message: &str| {
            let text = String::from_utf8(entry(Level::INFO, target, message)).unwrap();
            text.split_once(message).unwrap().1.replace('\0', ".")
        };
        assert_eq!(
            shown("audit", "event=rotated server-key=previous reason=\"a\\nSPA_CLIENT=b\""),
            "\nSPA_EVENT\n\u{7}.......rotated\nSPA_SERVER_KEY\n\u{8}.......previous\nSPA_REASON\n\u{e}.......a\nSPA_CLIENT=b\n"
        );
        assert_eq!(shown("spa_server", "event=opened client=mallory"), "\n");
    }

    #[test]
    fn no_message_begins_a_field_of_its_own() {
        let entry = entry(Level::WARN, "audit", "two\nTARGET=lines");
        let (fields, message) = entry.split_at(entry.len() - 25);
        assert_eq!(
            String::from_utf8_lossy(fields),
            "PRIORITY=4\nSYSLOG_IDENTIFIER=spa-server\nTARGET=audit\nMESSAGE\n"
        );
        assert_eq!(message, b"\x10\0\0\0\0\0\0\0two\nTARGET=lines\n");
    }

    #[test]
    fn a_message_that_is_too_long_is_cut_between_two_characters() {
        let long = format!("a{}", "\u{20ac}".repeat(LONGEST));
        let entry = entry(Level::INFO, "audit", &long);
        let text = String::from_utf8_lossy(&entry);
        assert!(entry.len() < LONGEST + 100 && text.ends_with("\u{20ac}\n"), "{}", entry.len());
    }
}
