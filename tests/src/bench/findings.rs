//! What all benchmarks have found, in one file: a run of one of them keeps what the others have
//! found, and puts its own in the place of its last.

use super::client::ClientResults;
use super::fire::Fire;
use super::results::Results;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use tempfile::NamedTempFile;

/// All that is known.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Findings {
    /// What grants and packets cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<Results>,
    /// The server under fire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub under_fire: Option<Fire>,
    /// What the client costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientResults>,
}

impl Findings {
    /// What the file holds; nothing where there is none.
    pub fn read(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_str(&text).with_context(|| {
            let path = path.display();
            format!("{path} holds no results of this version. To measure all anew: make bench")
        })
    }

    /// As the file has it.
    pub fn text(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Writes the file, all of it or nothing.
    pub fn write(&self, path: &Path) -> Result<()> {
        let context = || format!("cannot write {}", path.display());
        let directory = match path.parent() {
            Some(directory) if directory != Path::new("") => directory,
            _ => Path::new("."),
        };
        fs::create_dir_all(directory).with_context(context)?;
        let mut file = NamedTempFile::new_in(directory).with_context(context)?;
        file.write_all(self.text()?.as_bytes()).with_context(context)?;
        // Root measures, and others draw.
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).with_context(context)?;
        file.persist(path).with_context(context)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::example;
    use super::*;

    #[test]
    fn a_run_of_one_keeps_what_the_others_have_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bench").join("results.json");
        let mut findings = Findings::read(&path).unwrap();
        assert_eq!(findings, Findings::default());
        findings.client = Some(example());
        findings.write(&path).unwrap();

        let mut findings = Findings::read(&path).unwrap();
        let fire = Fire { seconds: 7.0, ..Fire::default() };
        findings.under_fire = Some(fire.clone());
        findings.write(&path).unwrap();
        let expected = Findings { gate: None, under_fire: Some(fire), client: Some(example()) };
        assert_eq!(Findings::read(&path).unwrap(), expected);

        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"under-fire\": {") && !text.contains("\"gate\""), "{text}");
    }

    #[test]
    fn results_that_cannot_be_read_are_not_taken_for_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.json");
        for text in ["", "[]", "{\"gates\": null}"] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", Findings::read(&path).unwrap_err());
            assert!(error.contains("results.json holds no results"), "{error}");
        }
    }
}
