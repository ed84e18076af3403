//! Which client may open which services, from where, for how long.
//!
//! Pure: it judges an authentic knock by what the configuration says, and knows nothing of files,
//! of the clock (the time is passed in), of what is open already, or of the firewall.

use crate::enrolment::Introduction;
use crate::large_list::with_room_for;
use crate::service::{Connections, Service};
use crate::source::Source;
use ipnet::IpNet;
use spa_proto::{ClientId, Item, Knock, MessageType, PortRange, ServiceName, UnixMicros};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The services of the server, by their names.
pub type Services = BTreeMap<ServiceName, Service>;

/// What a client may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientRules {
    /// Whether its knocks count at all.
    pub enabled: bool,
    /// The services that it may open, or single ports of them.
    pub allow: BTreeSet<ServiceName>,
    /// The longest lifetime that it may ask for; a longer one is refused, not clipped.
    pub max_lifetime: Duration,
    /// The lifetime of a request that names none; at most `max_lifetime`.
    pub default_lifetime: Duration,
    /// The networks that it may knock from; empty: from anywhere.
    pub sources: Vec<IpNet>,
    /// The instant before which its knocks are refused.
    pub not_before: Option<UnixMicros>,
    /// The instant from which on its knocks are refused.
    pub expires: Option<UnixMicros>,
    /// Whether its knocks have to be bound to the address that they come from.
    pub require_bound_source: bool,
    /// How much around the address that it knocks from is admitted.
    pub prefixes: Prefixes,
    /// How often it may knock.
    pub rate: Rate,
    /// The most source addresses that it may have grants for at a time.
    pub max_sources: u32,
}

/// The network that is admitted for a knock: where addresses are shared and change (carrier NAT)
/// the connection may come from another one than the knock did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefixes {
    /// The length of its prefix over IPv4; 32: the address alone.
    pub v4: u8,
    /// The length of its prefix over IPv6; 128: the address alone.
    pub v6: u8,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self { v4: 32, v6: 128 }
    }
}

/// How often a client may knock; accepted knocks alone are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    /// In the long run, knocks a minute.
    pub per_minute: u32,
    /// Knocks at once.
    pub burst: u32,
}

impl Default for Rate {
    fn default() -> Self {
        Self { per_minute: 60, burst: 30 }
    }
}

/// The rules of all clients.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    services: Services,
    clients: Clients,
}

/// All clients, by whatever they send packets with.
///
/// There may be very many, and two policies at a time: what a configuration says of them is held
/// once, and a policy adds what has changed since.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    known: Arc<Known>,
    /// Keys that have come since, or had their rules changed; `None`: that are gone.
    changed: BTreeMap<ClientId, Option<Entry>>,
    /// By their invitations, whether these were used or not.
    invited: BTreeMap<ClientId, Entry>,
}

/// Clients by the keys that they knock with: one may have two for a time.
#[derive(Debug, Default)]
struct Known {
    /// In their order.
    keys: Arc<Vec<ClientId>>,
    /// What belongs to each.
    entries: Vec<Entry>,
}

/// A client under one key, or by its invitation.
#[derive(Debug, Clone)]
pub struct Entry {
    /// How the server came to know it; `None`: by this very key.
    pub introduction: Option<Arc<Introduction>>,
    /// The name that the administrator gave it.
    pub name: Box<str>,
    /// What it may do. Of very many clients most may do the same, and share them.
    pub rules: Arc<ClientRules>,
}

impl Clients {
    /// These keys that clients knock with, each of them once, and these invitations.
    pub fn new(
        mut known: Vec<(ClientId, Entry)>,
        invited: impl IntoIterator<Item = (ClientId, Entry)>,
    ) -> Self {
        known.sort_unstable_by_key(|(id, _)| *id);
        let mut keys = with_room_for(known.len());
        let mut entries = with_room_for(known.len());
        for (id, entry) in known {
            keys.push(id);
            entries.push(entry);
        }
        let known = Arc::new(Known { keys: Arc::new(keys), entries });
        Self { known, changed: BTreeMap::new(), invited: invited.into_iter().collect() }
    }

    /// The keys that the configuration knows, in their order.
    pub fn keys(&self) -> &Arc<Vec<ClientId>> {
        &self.known.keys
    }

    /// The client that knocks with this key.
    fn known(&self, id: &ClientId) -> Option<&Entry> {
        match self.changed.get(id) {
            Some(changed) => changed.as_ref(),
            None => self.known.entries.get(self.known.keys.binary_search(id).ok()?),
        }
    }

    fn all_known(&self) -> impl Iterator<Item = (&ClientId, &Entry)> {
        let unchanged = self.known.keys.iter().zip(&self.known.entries);
        let unchanged = unchanged.filter(|(id, _)| !self.changed.contains_key(id));
        let changed = self.changed.iter();
        unchanged.chain(changed.filter_map(|(id, entry)| Some((id, entry.as_ref()?))))
    }

    fn all(&self) -> impl Iterator<Item = (&ClientId, &Entry)> {
        self.all_known().chain(&self.invited)
    }

    fn get(&self, id: &ClientId) -> Option<&Entry> {
        self.known(id).or_else(|| self.invited.get(id))
    }

    fn disable(&mut self, id: &ClientId) {
        let Some(mut entry) = self.get(id).cloned() else { return };
        Arc::make_mut(&mut entry.rules).enabled = false;
        match self.known(id) {
            Some(_) => drop(self.changed.insert(*id, Some(entry))),
            None => drop(self.invited.insert(*id, entry)),
        }
    }
}

impl Entry {
    /// How the server came to know the client that has this entry under `id`.
    pub fn introduction(&self, id: &ClientId) -> Introduction {
        self.introduction.as_deref().cloned().unwrap_or_else(|| Introduction::Key((*id).into()))
    }
}

/// What a knock may have: the answer of [`Policy::judge`].
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// The client's name.
    pub client: Arc<str>,
    /// For whom.
    pub source: Source,
    /// Each item that was asked for, with what it stands for.
    pub grants: Vec<Permitted>,
    /// For how long, at most until the client expires; for a close it says nothing.
    pub lifetime: Duration,
}

/// An item, and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permitted {
    /// A service, or one port of one.
    pub item: Item,
    /// Its ports.
    pub ports: Vec<PortRange>,
    /// How many connections are let in, to each of the ports.
    pub connections: Connections,
}

/// Why an authentic knock opened nothing.
///
/// Who is refused for a time, and the last three, are not judged here, since they depend on what an
/// administrator has said, or on what is open already: they speak the same language, so that
/// `status` counts all refusals alike.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The client was taken out of the configuration after the receiver had found its key.
    UnknownClient,
    /// The client is disabled.
    Disabled,
    /// The client's `not-before` lies ahead.
    NotYetValid,
    /// The client's `expires` has passed.
    Expired,
    /// The knock came from none of the client's networks.
    SourceNotAllowed,
    /// The client's knocks must be bound to an address; this one is not.
    BoundSourceRequired,
    /// The client may not open this, or there is no such service.
    ServiceNotAllowed(Item),
    /// What it asks for is forwarded to a host that has no address of the knock's family.
    FamilyNotServed(Item),
    /// An administrator has said that nothing is to be opened for this address, or network, for a
    /// time.
    SourceRefused(Source),
    /// A longer lifetime was asked for than the client may have.
    Lifetime {
        /// What was asked for.
        asked: Duration,
        /// What may be had.
        max: Duration,
    },
    /// The client knocks too often.
    Rate,
    /// The client has grants for as many addresses as it may.
    MaxSources,
    /// The server has as many grants as it may.
    MaxGrants,
}

impl Policy {
    /// The policy of a server with these services and clients.
    pub fn new(
        services: Services,
        clients: impl IntoIterator<Item = (ClientId, &'static str, ClientRules)>,
    ) -> Self {
        let entry = |name: &str, rules| Entry {
            introduction: None,
            name: name.into(),
            rules: Arc::new(rules),
        };
        let known = clients.into_iter().map(|(id, name, rules)| (id, entry(name, rules)));
        Self::of_clients(services, Clients::new(known.collect(), []))
    }

    /// The policy of a server with these services and clients, some of whom have other keys than
    /// their files say.
    pub fn of_clients(services: Services, clients: Clients) -> Self {
        Self { services, clients }
    }

    /// The same policy with one more key of a client that is invited or known by another key.
    #[must_use]
    pub fn with_key(&self, key: ClientId, of: &ClientId) -> Self {
        let mut policy = self.clone();
        if let Some(entry) = self.clients.get(of) {
            let introduction = Some(Arc::new(entry.introduction(of)));
            let entry = Entry { introduction, ..entry.clone() };
            policy.clients.changed.insert(key, Some(entry));
        }
        policy
    }

    /// The same policy without this key.
    #[must_use]
    pub fn without_key(&self, key: &ClientId) -> Self {
        let mut policy = self.clone();
        policy.clients.changed.insert(*key, None);
        policy
    }

    /// The rules of one client.
    pub fn client(&self, client: &ClientId) -> Option<&ClientRules> {
        self.clients.known(client).map(|entry| &*entry.rules)
    }

    /// What the client is called that knocks with this key, or was invited so.
    pub fn name(&self, id: &ClientId) -> Option<&str> {
        self.clients.get(id).map(|entry| &*entry.name)
    }

    /// Whether this key, or this invitation, is one of a client that is not disabled.
    pub fn is_enabled(&self, id: &ClientId) -> bool {
        self.clients.get(id).is_some_and(|entry| entry.rules.enabled)
    }

    /// The keys of the client of that name: none, where it was invited and has not come.
    pub fn clients_named(&self, name: &str) -> Option<Vec<ClientId>> {
        let is_meant = |entry: &Entry| &*entry.name == name;
        let known = self.clients.all_known().filter(|(_, entry)| is_meant(entry));
        let keys: Vec<_> = known.map(|(id, _)| *id).collect();
        let exists = !keys.is_empty() || self.clients.invited.values().any(is_meant);
        exists.then_some(keys)
    }

    /// Keys and invitations of those who are not disabled, and what is known of them.
    pub fn enabled(&self) -> impl Iterator<Item = (ClientId, Introduction, &str)> {
        let enabled = self.clients.all().filter(|(_, entry)| entry.rules.enabled);
        enabled.map(|(id, entry)| (*id, entry.introduction(id), &*entry.name))
    }

    /// The names and rules of all clients, those that are disabled too: of one that has several
    /// keys several times.
    pub fn all(&self) -> impl Iterator<Item = (&str, &ClientRules)> {
        self.clients.all().map(|(_, entry)| (&*entry.name, &*entry.rules))
    }

    /// The same policy with these keys and invitations disabled.
    #[must_use]
    pub fn without(&self, clients: &[ClientId]) -> Self {
        let mut policy = self.clone();
        for client in clients {
            policy.clients.disable(client);
        }
        policy
    }

    /// Judges an authentic knock; `now` is the server's clock.
    pub fn judge(&self, knock: &Knock, now: UnixMicros) -> Result<Permit, Refusal> {
        let request = &knock.request;
        let entry = self.standing(&knock.client, knock.source, now)?;
        let rules = &entry.rules;
        if rules.require_bound_source && request.bound_source.is_none() {
            return Err(Refusal::BoundSourceRequired);
        }
        let grants = request
            .items
            .iter()
            .map(|item| self.resolve(rules, item, knock.source))
            .collect::<Result<Vec<_>, _>>()?;
        let lifetime = match request.lifetime {
            Some(seconds) => Duration::from_secs(seconds.get().into()),
            None => rules.default_lifetime,
        };
        if request.message_type == MessageType::Open && lifetime > rules.max_lifetime {
            return Err(Refusal::Lifetime { asked: lifetime, max: rules.max_lifetime });
        }
        // What is open ends with the client's validity, or it would outlive it by a lifetime.
        let valid_for = rules.expires.map_or(Duration::MAX, |expires| expires.distance(now));
        let lifetime = lifetime.min(valid_for);
        let source = admitted(rules, knock.source);
        Ok(Permit { client: (&*entry.name).into(), source, grants, lifetime })
    }

    /// Whether a grant that an earlier policy made stands under this one: the client may still
    /// open the item from there, and the item still stands for these ports and for as many
    /// connections.
    pub fn upholds(
        &self,
        client: &ClientId,
        source: Source,
        had: &Permitted,
        now: UnixMicros,
    ) -> Result<(), Refusal> {
        let rules = &self.standing(client, source.address(), now)?.rules;
        if !admitted(rules, source.address()).covers(source) {
            return Err(Refusal::SourceNotAllowed);
        }
        let has = self.resolve(rules, &had.item, source.address())?;
        let same_ports = had.ports.iter().all(|ports| has.ports.contains(ports));
        if same_ports && had.connections == has.connections {
            Ok(())
        } else {
            Err(Refusal::ServiceNotAllowed(had.item.clone()))
        }
    }

    /// A client whose knocks from `source` count now.
    fn standing(
        &self,
        client: &ClientId,
        source: IpAddr,
        now: UnixMicros,
    ) -> Result<&Entry, Refusal> {
        let entry = self.clients.known(client).ok_or(Refusal::UnknownClient)?;
        stands(&entry.rules, source, now)?;
        Ok(entry)
    }

    /// Judges whether a client may announce a key from `source` now, by the rules of the client
    /// that has sent it or is invited. Gives back the client's name.
    pub fn judge_announcement(
        &self,
        sender: &ClientId,
        source: IpAddr,
        now: UnixMicros,
    ) -> Result<&str, Refusal> {
        let entry = self.clients.get(sender).ok_or(Refusal::UnknownClient)?;
        stands(&entry.rules, source, now)?;
        Ok(&entry.name)
    }

    /// What an item stands for.
    fn resolve(
        &self,
        rules: &ClientRules,
        item: &Item,
        source: IpAddr,
    ) -> Result<Permitted, Refusal> {
        let mut allowed = rules.allow.iter().filter_map(|name| self.services.get_key_value(name));
        let (service, ports) = match item {
            Item::Service(asked) => allowed
                .find(|(name, _)| *name == asked)
                .map(|(_, service)| (service, service.ports.iter().copied().collect())),
            Item::Port(port) => allowed
                .find(|(_, service)| service.ports.iter().any(|ports| ports.contains(*port)))
                .map(|(_, service)| (service, vec![PortRange::from(*port)])),
        }
        .ok_or_else(|| Refusal::ServiceNotAllowed(item.clone()))?;
        if service.target.serves(source.to_canonical()) {
            Ok(Permitted { item: item.clone(), ports, connections: service.connections })
        } else {
            Err(Refusal::FamilyNotServed(item.clone()))
        }
    }
}

/// Whether knocks of a client with these rules count that come from `source` now.
fn stands(rules: &ClientRules, source: IpAddr, now: UnixMicros) -> Result<(), Refusal> {
    if !rules.enabled {
        return Err(Refusal::Disabled);
    }
    if rules.not_before.is_some_and(|not_before| now < not_before) {
        return Err(Refusal::NotYetValid);
    }
    if rules.expires.is_some_and(|expires| now >= expires) {
        return Err(Refusal::Expired);
    }
    let source = source.to_canonical();
    if !rules.sources.is_empty() && !rules.sources.iter().any(|net| net.contains(&source)) {
        return Err(Refusal::SourceNotAllowed);
    }
    Ok(())
}

/// Whether a client with these rules may have this admitted, at some time.
pub(crate) fn may_have(rules: &ClientRules, source: Source) -> bool {
    let address = source.address();
    let may_knock =
        rules.sources.is_empty() || rules.sources.iter().any(|net| net.contains(&address));
    may_knock && admitted(rules, address).covers(source)
}

/// What is admitted for a knock from `address`: never more than the client may knock from.
fn admitted(rules: &ClientRules, address: IpAddr) -> Source {
    let address = address.to_canonical();
    let prefix = if address.is_ipv4() { rules.prefixes.v4 } else { rules.prefixes.v6 };
    let allowed = rules.sources.iter().filter(|net| net.contains(&address));
    let narrowest_that_must = allowed.map(IpNet::prefix_len).min().unwrap_or(0);
    Source::around(address, prefix.max(narrowest_that_must))
}

impl Refusal {
    /// The names of all refusals, as [`as_str`](Self::as_str) gives them.
    pub const ALL: &'static [&'static str] = &[
        "unknown-client",
        "disabled",
        "not-yet-valid",
        "expired",
        "source-not-allowed",
        "bound-source-required",
        "service-not-allowed",
        "family-not-served",
        "source-refused",
        "lifetime",
        "rate",
        "max-sources",
        "max-grants",
    ];

    /// The refusal's name in `status` and the log.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::UnknownClient => "unknown-client",
            Self::Disabled => "disabled",
            Self::NotYetValid => "not-yet-valid",
            Self::Expired => "expired",
            Self::SourceNotAllowed => "source-not-allowed",
            Self::BoundSourceRequired => "bound-source-required",
            Self::ServiceNotAllowed(_) => "service-not-allowed",
            Self::FamilyNotServed(_) => "family-not-served",
            Self::SourceRefused(_) => "source-refused",
            Self::Lifetime { .. } => "lifetime",
            Self::Rate => "rate",
            Self::MaxSources => "max-sources",
            Self::MaxGrants => "max-grants",
        }
    }
}

/// The name, and what there is to add to it.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        match self {
            Self::ServiceNotAllowed(item) | Self::FamilyNotServed(item) => write!(f, " ({item})"),
            Self::SourceRefused(source) => write!(f, " ({source})"),
            Self::Lifetime { asked, max } => {
                write!(f, " (asked {} s, maximum {} s)", asked.as_secs(), max.as_secs())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
