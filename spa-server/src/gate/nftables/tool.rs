//! What the tool `nft` is asked for: one method, one run. How its complaints are told apart is
//! known here and nowhere else.

use crate::gate::tools::MissingTool;
use crate::gate::{GateError, ToolOverrides, Tools};
use crate::process::{ProcessError, Run};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::OnceCell;

/// The first version that writes all that is asked of it.
const OLDEST: (u32, u32) = (1, 0);
/// A table with very many elements takes its time.
const LIMIT: Duration = Duration::from_secs(30);

/// The tool `nft`.
#[derive(Debug)]
pub(super) struct Nft {
    path: PathBuf,
    is_new_enough: OnceCell<()>,
}

impl Nft {
    pub(super) fn find(overrides: &ToolOverrides) -> Result<Self, MissingTool> {
        Ok(Self { path: Tools::find_nft(overrides)?, is_new_enough: OnceCell::new() })
    }

    /// Fails if it is too old.
    pub(super) async fn check_version(&self) -> Result<(), GateError> {
        let check = async || {
            let text = Run::new(&self.path, &["--version"]).output().await;
            judge_version(&text.map_err(doing("ask nft for its version"))?)
        };
        self.is_new_enough.get_or_try_init(check).await.copied()
    }

    /// Carries a script out, in one transaction.
    pub(super) async fn run(&self, what: &'static str, script: &str) -> Result<(), GateError> {
        let run = Run::new(&self.path, &["-f", "-"]).stdin(script).time_limit(LIMIT);
        run.output().await.map(drop).map_err(doing(what))
    }

    /// All rules there are, without elements, in JSON.
    pub(super) async fn ruleset(&self) -> Result<String, GateError> {
        let run = Run::new(&self.path, &["-j", "-t", "list", "ruleset"]).time_limit(LIMIT);
        run.output().await.map_err(doing("list the rules of nftables"))
    }

    /// The table without elements, in JSON; `None` if it isn't there.
    pub(super) async fn table(&self) -> Result<Option<String>, GateError> {
        self.list(&["-j", "-t", "list", "table", "inet", "spa"]).await
    }

    /// The table with its elements, as a script that makes it.
    pub(super) async fn table_as_script(&self) -> Result<Option<String>, GateError> {
        self.list(&["list", "table", "inet", "spa"]).await
    }

    async fn list(&self, args: &[&str]) -> Result<Option<String>, GateError> {
        match Run::new(&self.path, args).time_limit(LIMIT).output().await {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.complaint().contains("No such file or directory") => Ok(None),
            Err(error) => Err(doing("list the table of the gate")(error)),
        }
    }
}

fn doing(doing: &'static str) -> impl Fn(ProcessError) -> GateError {
    // What the kernel says of a subsystem, or of parts of it, that it hasn't.
    const LACKS: [&str; 3] =
        ["Protocol not supported", "Operation not supported", "Unable to initialize Netlink"];
    move |source| {
        if LACKS.iter().any(|lack| source.complaint().contains(lack)) {
            return GateError::NoNftables { doing, source };
        }
        GateError::Tool { doing, source }
    }
}

/// `nftables v1.0.6 (Lester Gooch #5)`
fn judge_version(text: &str) -> Result<(), GateError> {
    let version = || {
        let mut numbers = text.split_once(" v")?.1.split(['.', ' ']);
        Some((numbers.next()?.parse::<u32>().ok()?, numbers.next()?.parse::<u32>().ok()?))
    };
    match version() {
        Some(version) if version >= OLDEST => Ok(()),
        Some(_) => Err(GateError::OldNft(text.trim().to_owned())),
        None => Err(GateError::Unreadable { tool: "nft", what: text.trim().to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_tool_is_told() {
        assert!(judge_version("nftables v1.0.6 (Lester Gooch #5)\n").is_ok());
        assert!(judge_version("nftables v1.1.3 (Commodore Bullmoose #4)\n").is_ok());
        let error = judge_version("nftables v0.9.8 (E.D.S.)\n").unwrap_err();
        assert!(error.to_string().contains("nftables v0.9.8"), "{error}");
        assert!(matches!(judge_version("?").unwrap_err(), GateError::Unreadable { .. }));
    }
}
