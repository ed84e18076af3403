//! `spa-server invite`: a client's file without a key, and one line by which the client brings it.

use super::client_add::{Written, rule_lines, usage};
use super::daemon::take_up;
use super::output::{print, print_json};
use super::{CommandError, Done, client, host, write};
use crate::causes::with_causes;
use crate::cli::InviteArgs;
use crate::config::{
    self, ClientSettings, ConfigError, Settings, client_file, format_timestamp,
    parse_duration_or_seconds, parse_timestamp,
};
use crate::enrolment::EnrolmentStore;
use crate::service::Connections;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use ring::rand::SystemRandom;
use serde::Serialize;
use spa_keys::{Invitation, InvitationSecret, InvitedService, Overwrite, PublicKey};
use spa_proto::UnixMicros;
use std::fs;
use std::io::{self, IsTerminal as _};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml_edit::Value;
use zeroize::Zeroizing;

/// An invitation, as a program sees it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Invited<'a> {
    name: String,
    file: PathBuf,
    expires: String,
    server_public_key: PublicKey,
    /// The secret line itself.
    invitation: &'a str,
    /// What the client's user runs.
    client_command: &'a str,
}

/// `spa-server invite`.
pub(crate) fn run(config: &Path, args: &InviteArgs) -> Done {
    let settings = Settings::load(config)?;
    let server = config::read_private_key(config, &settings).map_err(ConfigError::from)?.public();
    let file = client_file(config, &args.name);
    if fs::symlink_metadata(&file).is_ok() {
        return Err(CommandError::Failed(format!(
            "there is a client {name} already ({}); take another name, or remove it first: spa-server client remove {name}",
            file.display(),
            name = args.name
        )));
    }
    let now = client::now();
    write::directory(&settings.state_directory)?;
    // Else what is known of enrolments would begin after this one.
    let since = EnrolmentStore::ensure(&settings.state_directory, now)
        .map_err(|error| CommandError::Failed(with_causes(&error)))?;
    // To the next second, which is as exactly as the file says it: nothing is known before.
    let issued = UnixMicros::from_secs(now.max(since).as_secs().saturating_add(1));
    let expires = until(&args.expires, issued)?;
    let secret_file = file.with_extension("invitation");
    let text = text(args, issued, expires, &secret_file);
    let settled = ClientSettings::parse(&file, &text, &settings).map_err(|error| usage(&error))?;
    let secret = InvitationSecret::generate(&SystemRandom::new())?;
    let hosts = hosts(args)?;
    let invitation = Invitation {
        server,
        secret,
        expires,
        length: settings.packet_length,
        name: server_name(args, &hosts),
        knock_ports: settings
            .knock_ports
            .iter()
            .filter_map(|port| NonZeroU16::new(*port))
            .collect(),
        hosts,
        services: services(&settled, &settings),
    };
    let line = invitation.to_text().map_err(|error| CommandError::Usage(error.to_string()))?;
    let code = qr_code(args, &line)?;

    write::directory(&Settings::clients_directory_of(config))?;
    let mut written = Written(Vec::new());
    spa_keys::write_invitation_secret(&secret_file, &invitation.secret, Overwrite::Refuse)?;
    written.0.push(&secret_file);
    write::create(&file, &text)?;
    written.0.clear();

    let command = Zeroizing::new(format!("spa-client join {}", *line));
    eprintln!(
        "client {} is invited until {}: {}",
        args.name,
        format_timestamp(expires),
        file.display()
    );
    if args.output.json {
        print_json(&Invited {
            name: args.name.to_string(),
            file: file.clone(),
            expires: format_timestamp(expires),
            server_public_key: server,
            invitation: &line,
            client_command: &command,
        })?;
    } else {
        eprintln!("on the client; who has this line can take its place until it was used:");
        print(&format!("{}\n", *command))?;
    }
    if let Some(code) = code {
        eprintln!("{code}");
    }
    take_up(config)
}

/// The client's file.
fn text(args: &InviteArgs, issued: UnixMicros, expires: UnixMicros, secret: &Path) -> String {
    let mut lines =
        vec![format!("# Written by `spa-server invite` on {}.", format_timestamp(issued))];
    lines.extend(rule_lines(&args.rules));
    let path = secret.to_string_lossy();
    lines.extend([
        String::new(),
        "# The client brings its key by this invitation, once; the server keeps the key with its state."
            .into(),
        "[invitation]".into(),
        format!("secret-file = {}", Value::from(path.as_ref())),
        format!("issued = {}", Value::from(format_timestamp(issued))),
        format!("expires = {}", Value::from(format_timestamp(expires))),
        String::new(),
    ]);
    lines.join("\n")
}

/// The longest time that an invitation can hold.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

fn until(text: &str, issued: UnixMicros) -> Result<UnixMicros, CommandError> {
    let usage = |why: String| CommandError::Usage(format!("--expires: {why}"));
    let expires = match parse_duration_or_seconds(text) {
        Ok(duration) => issued.saturating_add(duration),
        Err(_) => parse_timestamp(text).map_err(|_| {
            usage(format!(
                "{text:?} is neither a time to last, as in 24h, nor a date, as in 2027-01-31"
            ))
        })?,
    };
    if expires <= issued {
        return Err(usage(format!("{} is over already", format_timestamp(expires))));
    }
    if expires > issued.saturating_add(LONGEST) {
        return Err(usage(
            "an invitation is a secret that lies about; it holds a year at most".into(),
        ));
    }
    Ok(expires)
}

/// How clients reach this server: it can't know by itself more than its name.
fn hosts(args: &InviteArgs) -> Result<Vec<String>, CommandError> {
    if let Some(wrong) = args.hosts.iter().find(|host| !is_host(host)) {
        return Err(CommandError::Usage(format!(
            "--host: {wrong:?} is not a host; write a name or an IP address alone, as in gw.example.org"
        )));
    }
    if !args.hosts.is_empty() {
        return Ok(args.hosts.iter().map(|host| bare(host).to_owned()).collect());
    }
    // A bare label rarely means anything to the client's resolver.
    let name = host::name().filter(|name| name.contains('.') && is_host(name));
    name.map(|name| vec![name]).ok_or_else(|| {
        CommandError::Usage(
            "this host's name is not one by which clients could reach it; name it as they do: --host gw.example.org, or --host ADDRESS (again for a second one)".into(),
        )
    })
}

/// An IPv6 address without brackets.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

fn is_host(host: &str) -> bool {
    let host = bare(host);
    let is_name = !host.is_empty()
        && !host.starts_with('-')
        && host.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
    is_name || host.parse::<std::net::Ipv6Addr>().is_ok()
}

/// What the client calls this server: the first label of its name.
fn server_name(args: &InviteArgs, hosts: &[String]) -> String {
    if let Some(name) = &args.server_name {
        return name.clone();
    }
    let own = host::name();
    let named = hosts.iter().find(|host| host.parse::<std::net::IpAddr>().is_err());
    let label = |name: &String| name.split('.').next().map(ToOwned::to_owned);
    let is_name = |label: &String| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let labels = [named, own.as_ref()].into_iter().flatten().filter_map(label);
    labels.into_iter().find(is_name).unwrap_or_else(|| "server".into())
}

fn services(settled: &ClientSettings, settings: &Settings) -> Vec<InvitedService> {
    let service = |name: &spa_proto::ServiceName| {
        let service = settings.services.get(name)?;
        let ports = service.ports.iter().copied().collect();
        let once = service.connections == Connections::One;
        Some(InvitedService { name: name.clone(), ports, once })
    };
    settled.rules.allow.iter().filter_map(service).collect()
}

fn qr_code(args: &InviteArgs, line: &str) -> Result<Option<String>, CommandError> {
    let on_terminal = || !args.no_qr && !args.output.json && io::stderr().is_terminal();
    if !args.qr && !on_terminal() {
        return Ok(None);
    }
    match QrCode::new(line) {
        // Dark on light, whatever the terminal's colours are: readers want it so.
        Ok(code) => Ok(Some(
            code.render::<Dense1x2>()
                .dark_color(Dense1x2::Light)
                .light_color(Dense1x2::Dark)
                .build(),
        )),
        Err(_) if !args.qr => Ok(None),
        Err(error) => Err(CommandError::Usage(format!(
            "this invitation does not fit a QR code ({error}); name fewer services or hosts, or leave --qr out"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUED: UnixMicros = UnixMicros::from_secs(1_800_000_000);

    #[test]
    fn an_invitation_ends_after_a_time_or_at_one() {
        let of = |text: &str| until(text, ISSUED).map_err(|error| error.to_string());
        assert_eq!(of("24h").unwrap().as_secs(), 1_800_086_400);
        assert_eq!(of("90").unwrap().as_secs(), 1_800_000_090);
        assert_eq!(of("2027-01-31").unwrap().as_secs(), 1_801_353_600);
        for (text, told) in [
            ("tomorrow", "neither a time to last"),
            ("2020-01-01", "is over already"),
            ("0s", "is over already"),
            ("400d", "a year at most"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for host in ["gw.example.org", "192.0.2.1", "2001:db8::1", "[2001:db8::1]", "gw"] {
            assert!(is_host(host), "{host}");
        }
        for host in ["", "-x", "a b", "gw:22", "user@gw", "gw/"] {
            assert!(!is_host(host), "{host}");
        }
    }
}
