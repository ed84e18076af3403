//! Text that can do nothing to a terminal, nor to a line that it stands in.

/// The text with a sign in the place of each character that a terminal would obey, or that would
/// have the rest read otherwise than it is written: control characters, and those that turn the
/// direction of writing or take no place.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if is_harmful(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_would_obey_is_replaced() {
        for (text, shown) in [
            ("laptop", "laptop"),
            ("caf\u{e9} \u{4e2d}", "caf\u{e9} \u{4e2d}"),
            ("\u{1b}[2J", "\u{fffd}[2J"),
            ("a\nb\tc\u{7}\u{7f}", "a\u{fffd}b\u{fffd}c\u{fffd}\u{fffd}"),
            ("\u{9b}31m", "\u{fffd}31m"),
            ("\u{202e}hss", "\u{fffd}hss"),
            ("a\u{200b}b\u{feff}", "a\u{fffd}b\u{fffd}"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }

    proptest! {
        #[test]
        fn no_control_character_is_left(text in any::<String>()) {
            prop_assert!(!plain(&text).chars().any(char::is_control));
        }
    }
}
