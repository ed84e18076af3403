//! A server with its keys, as text, on its way to a second device.

use super::edit::table;
use super::{Config, ConfigError, RawServer, line_of};
use crate::server::{Server, ServerName};
use core::fmt::Write as _;
use serde::Deserialize;
use spa_keys::{StoredKeys, StoredKeysError};
use std::collections::BTreeMap;
use std::path::Path;
use toml::Spanned;
use toml_edit::{DocumentMut, Item, Table};
use zeroize::Zeroizing;

/// The text for `server` with `keys`: what `spa-client import` reads.
pub(crate) fn write(server: &Server, keys: &StoredKeys) -> Zeroizing<String> {
    let mut entry = server.clone();
    // Where the keys are is this device's own business.
    entry.identity = Config::default_identity(Path::new("")).into();
    entry.pre_shared_key = None;
    let mut servers = Table::new();
    servers.set_implicit(true);
    servers.insert(server.name.as_str(), Item::Table(table(Path::new(""), &entry)));
    let mut document = DocumentMut::new();
    document.insert("server", Item::Table(servers));
    // Allocated once, and put together by hand: the keys are in no other string.
    let mut text = Zeroizing::new(String::with_capacity(64 << 10));
    let _ = write!(
        text,
        "# A server and a client's keys for it, exported by spa-client for a second device.\n\
         # Whoever has this, and its passphrase, is that client. There: spa-client import FILE\n\n\
         [keys]\nprivate-key = \"{}\"\n",
        *keys.private.to_text()
    );
    if let Some(key) = &keys.pre_shared {
        let _ = writeln!(text, "pre-shared-key = \"{}\"", *key.to_text());
    }
    let _ = write!(text, "\n{document}");
    text
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawExport {
    keys: RawKeys,
    server: BTreeMap<Spanned<String>, RawServer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawKeys {
    private_key: Spanned<String>,
    pre_shared_key: Option<Spanned<String>>,
}

/// The server and the keys in a text that comes from `path`. Where the text wants the keys to be
/// kept is refused: a command there would be run.
pub(crate) fn read(text: &str, path: &Path) -> Result<(Server, StoredKeys), ConfigError> {
    let at = |span, message: String| {
        let line = line_of(text, span);
        ConfigError::Content { path: path.into(), line, message }
    };
    let RawExport { keys, server } =
        toml::from_str(text).map_err(|error| at(error.span(), error.message().into()))?;
    let RawKeys { private_key, pre_shared_key } = keys;
    let line = private_key.span();
    let private = Zeroizing::new(private_key.into_inner());
    let private = private
        .parse()
        .map_err(|error: spa_keys::KeyTextError| at(Some(line), error.to_string()))?;
    let pre_shared = pre_shared_key
        .map(|key| {
            let line = key.span();
            let key = Zeroizing::new(key.into_inner());
            key.parse().map_err(|error: spa_keys::KeyTextError| at(Some(line), error.to_string()))
        })
        .transpose()?;
    let mut servers = server.into_iter();
    let (Some((name, raw)), None) = (servers.next(), servers.next()) else {
        return Err(at(None, "there is not exactly one server in it; export it again".into()));
    };
    let directory = Path::new("");
    let checked = raw
        .check(
            name.get_ref()
                .parse::<ServerName>()
                .map_err(|e| at(Some(name.span()), e.to_string()))?,
            directory,
        )
        .map_err(|super::Bad(span, what)| at(span, what))?;
    if checked.identity != Config::default_identity(directory).into()
        || checked.pre_shared_key.is_some()
    {
        return Err(at(
            Some(name.span()),
            "it says where keys are kept on another device, which no export does; don't use it"
                .into(),
        ));
    }
    let keys = StoredKeys { private, pre_shared };
    // Once more as a key file will be read.
    match keys.to_text().parse::<StoredKeys>() {
        Ok(_) => Ok((checked, keys)),
        Err(error) => Err(at(None, StoredKeysError::to_string(&error))),
    }
}
