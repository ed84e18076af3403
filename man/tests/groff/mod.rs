//! Manual pages as groff sees them, for the tests of the programs that write them.

use std::path::Path;
use std::process::{Command, Stdio};

/// The names of the pages in `directory`, each of which groff finds nothing wrong with.
pub(crate) fn sound_pages(directory: &Path, manual: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut pages: Vec<_> = entries.map(|page| page.unwrap().path()).collect();
    pages.sort();
    for page in &pages {
        let output = Command::new("/usr/bin/groff")
            .args(["-man", "-ww", "-Tutf8", "-P-c", "-P-b", "-P-u", "-rLL=100n"])
            .arg(page)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.is_empty(), "{}: {told}", page.display());
        let text = String::from_utf8(output.stdout).unwrap();
        for heading in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"] {
            assert!(text.contains(heading), "{}: no {heading}", page.display());
        }
        assert!(text.contains(manual), "{text}");
    }
    let names = pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap().to_owned());
    names.collect()
}

/// A page in plain letters, 100 columns wide.
pub(crate) fn plain(page: &Path) -> String {
    let output = Command::new("/usr/bin/groff")
        .args(["-man", "-Tascii", "-P-c", "-P-b", "-P-u", "-rLL=100n"])
        .arg(page)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}
