//! Where the tools are that speak to the kernel.

use serde::{Deserialize, Serialize};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Where tools are looked for: fixed, since a search path can be set by whoever starts us.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Paths that the administrator chose over those that would be found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ToolOverrides {
    /// In place of `iptables-restore`.
    pub iptables_restore: Option<PathBuf>,
    /// In place of `ip6tables-restore`.
    pub ip6tables_restore: Option<PathBuf>,
    /// In place of `iptables-save`.
    pub iptables_save: Option<PathBuf>,
    /// In place of `ip6tables-save`.
    pub ip6tables_save: Option<PathBuf>,
    /// In place of `nft`.
    pub nft: Option<PathBuf>,
}

/// The absolute paths of the tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// Writes IPv4 rules.
    pub iptables_restore: PathBuf,
    /// Writes IPv6 rules.
    pub ip6tables_restore: PathBuf,
    /// Reads IPv4 rules.
    pub iptables_save: PathBuf,
    /// Reads IPv6 rules.
    pub ip6tables_save: PathBuf,
    /// Reads the rules that others made without iptables. Only open mode can't do without it.
    pub nft: Option<PathBuf>,
}

impl Tools {
    /// Finds all tools.
    ///
    /// An override that isn't an executable file is an error: what else is installed is then not
    /// what the administrator wanted.
    pub fn find(overrides: &ToolOverrides) -> Result<Self, MissingTool> {
        Self::find_in(overrides, &DIRECTORIES.map(Path::new))
    }

    fn find_in(overrides: &ToolOverrides, directories: &[&Path]) -> Result<Self, MissingTool> {
        let tool = |chosen: &Option<PathBuf>, name, package| {
            find(chosen.as_deref(), name, package, directories)
        };
        Ok(Self {
            iptables_restore: tool(&overrides.iptables_restore, "iptables-restore", "iptables")?,
            ip6tables_restore: tool(&overrides.ip6tables_restore, "ip6tables-restore", "iptables")?,
            iptables_save: tool(&overrides.iptables_save, "iptables-save", "iptables")?,
            ip6tables_save: tool(&overrides.ip6tables_save, "ip6tables-save", "iptables")?,
            nft: match tool(&overrides.nft, "nft", "nftables") {
                Ok(path) => Some(path),
                Err(_) if overrides.nft.is_none() => None,
                Err(missing) => return Err(missing),
            },
        })
    }

    /// Finds the tools that are there. One that is missing fails when it is used: to take the gate
    /// away not all of them are needed, and it must not depend on those that aren't.
    pub fn find_some(overrides: &ToolOverrides) -> Self {
        Self::find_some_in(overrides, &DIRECTORIES.map(Path::new))
    }

    fn find_some_in(overrides: &ToolOverrides, directories: &[&Path]) -> Self {
        let tool = |chosen: &Option<PathBuf>, name| {
            find(chosen.as_deref(), name, "", directories)
                .or_else(|_| find(None, name, "", directories))
                .unwrap_or_else(|_| directories.first().unwrap_or(&Path::new("/")).join(name))
        };
        Self {
            iptables_restore: tool(&overrides.iptables_restore, "iptables-restore"),
            ip6tables_restore: tool(&overrides.ip6tables_restore, "ip6tables-restore"),
            iptables_save: tool(&overrides.iptables_save, "iptables-save"),
            ip6tables_save: tool(&overrides.ip6tables_save, "ip6tables-save"),
            nft: find(overrides.nft.as_deref(), "nft", "", directories).ok(),
        }
    }

    /// These tools, but those of one variant of iptables, whatever `iptables` stands for here.
    pub(super) fn with_variant(&self, variant: &VariantTools) -> Result<Self, MissingTool> {
        let tool = |name| find(None, name, "iptables", &DIRECTORIES.map(Path::new));
        Ok(Self {
            iptables_restore: tool(variant.iptables_restore)?,
            ip6tables_restore: tool(variant.ip6tables_restore)?,
            iptables_save: tool(variant.iptables_save)?,
            ip6tables_save: tool(variant.ip6tables_save)?,
            ..self.clone()
        })
    }

    /// The tool of this name that reads the rules of iptables-legacy.
    pub(super) fn find_legacy(name: &'static str) -> Result<PathBuf, MissingTool> {
        find(None, name, "iptables", &DIRECTORIES.map(Path::new))
    }

    /// Finds `nft` alone.
    pub(super) fn find_nft(overrides: &ToolOverrides) -> Result<PathBuf, MissingTool> {
        find(overrides.nft.as_deref(), "nft", "nftables", &DIRECTORIES.map(Path::new))
    }

    /// Whether the rules of iptables can be read and written.
    pub(super) fn have_iptables(&self) -> bool {
        self.of_iptables().into_iter().all(is_executable)
    }

    /// Whether any tool of iptables is there.
    pub(super) fn have_some_of_iptables(&self) -> bool {
        self.of_iptables().into_iter().any(is_executable)
    }

    /// Those of iptables.
    pub(super) fn of_iptables(&self) -> [&Path; 4] {
        [&self.iptables_restore, &self.ip6tables_restore, &self.iptables_save, &self.ip6tables_save]
            .map(PathBuf::as_path)
    }

    /// The path of `nft`, for whom nothing goes without it.
    pub fn need_nft(&self) -> Result<&Path, MissingTool> {
        self.nft.as_deref().ok_or(MissingTool { name: "nft", package: "nftables", at: None })
    }
}

/// The names of the tools of one variant of iptables.
pub(super) struct VariantTools {
    iptables_restore: &'static str,
    ip6tables_restore: &'static str,
    iptables_save: &'static str,
    ip6tables_save: &'static str,
}

/// iptables-nft.
pub(super) const NFT: VariantTools = VariantTools {
    iptables_restore: "iptables-nft-restore",
    ip6tables_restore: "ip6tables-nft-restore",
    iptables_save: "iptables-nft-save",
    ip6tables_save: "ip6tables-nft-save",
};
/// iptables-legacy.
pub(super) const LEGACY: VariantTools = VariantTools {
    iptables_restore: "iptables-legacy-restore",
    ip6tables_restore: "ip6tables-legacy-restore",
    iptables_save: "iptables-legacy-save",
    ip6tables_save: "ip6tables-legacy-save",
};

/// A tool that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name} {}; install it with 'apt install {package}', or name its path in [gate.tools]",
    place(.at.as_deref())
)]
pub struct MissingTool {
    /// The tool's name.
    pub name: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
    /// The path that the administrator chose for it, if so.
    pub at: Option<PathBuf>,
}

fn place(at: Option<&Path>) -> String {
    match at {
        Some(path) => format!("is not an executable file at {}", path.display()),
        None => format!("is in none of {}", DIRECTORIES.join(", ")),
    }
}

fn find(
    chosen: Option<&Path>,
    name: &'static str,
    package: &'static str,
    directories: &[&Path],
) -> Result<PathBuf, MissingTool> {
    // The path is kept as it stands, links and all: these tools go by the name they are called.
    match chosen {
        Some(path) if path.is_absolute() && is_executable(path) => Ok(path.into()),
        Some(path) => Err(MissingTool { name, package, at: Some(path.into()) }),
        None => directories
            .iter()
            .map(|directory| directory.join(name))
            .find(|path| is_executable(path))
            .ok_or(MissingTool { name, package, at: None }),
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const NAMES: [&str; 4] =
        ["iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save"];

    fn directory_with(names: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in names {
            let path = directory.path().join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        directory
    }

    #[test]
    fn each_missing_tool_is_named_with_its_package() {
        let none = ToolOverrides::default();
        let all = directory_with(&NAMES);
        let tools = Tools::find_in(&none, &[all.path()]).unwrap();
        assert_eq!(tools.iptables_save, all.path().join("iptables-save"));
        assert_eq!(tools.need_nft().unwrap_err().package, "nftables");
        for missing in NAMES {
            let rest: Vec<_> = NAMES.into_iter().filter(|name| *name != missing).collect();
            let directory = directory_with(&rest);
            let error = Tools::find_in(&none, &[directory.path()]).unwrap_err();
            assert_eq!(error.name, missing);
            assert!(error.to_string().contains("apt install"), "{error}");
        }
    }

    #[test]
    fn what_is_missing_hinders_nobody_who_does_without_it() {
        let gone =
            ToolOverrides { iptables_save: Some("/gone".into()), ..ToolOverrides::default() };
        let rest =
            directory_with(&NAMES.map(|name| if name == "ip6tables-save" { "x" } else { name }));
        let place = [rest.path()];
        assert!(Tools::find_in(&gone, &place).is_err());
        let tools = Tools::find_some_in(&gone, &place);
        assert_eq!(tools.iptables_save, rest.path().join("iptables-save"));
        assert_eq!(tools.ip6tables_save, rest.path().join("ip6tables-save"));
    }

    #[test]
    fn a_chosen_tool_must_be_an_absolute_executable_file() {
        let all = directory_with(&NAMES);
        let chosen = |path: PathBuf| {
            let overrides = ToolOverrides { iptables_save: Some(path), ..ToolOverrides::default() };
            Tools::find_in(&overrides, &[all.path()])
        };
        let other = directory_with(&["my-save"]);
        let path = other.path().join("my-save");
        assert_eq!(chosen(path.clone()).unwrap().iptables_save, path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        for wrong in [path, other.path().into(), "iptables-save".into(), "/nonexistent".into()] {
            assert_eq!(chosen(wrong.clone()).unwrap_err().at, Some(wrong));
        }
    }
}
