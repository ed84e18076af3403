//! Which client may open which services, from where, for how long.
//!
//! Pure: it judges an authentic knock by what the configuration says, and knows nothing of files,
//! of the clock (the time is passed in), of what is open already, or of the firewall.

use crate::enrolment::Introduction;
use crate::service::{Connections, Service};
use crate::source::Source;
use ipnet::IpNet;
use spa_proto::{ClientId, Item, Knock, MessageType, PortRange, ServiceName, UnixMicros};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
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
#[derive(Debug, Clone, Default)]
pub struct Clients {
    /// By the keys that they knock with: a client may have two for a time.
    known: HashMap<ClientId, Entry>,
    /// By their invitations, whether these were used or not.
    invited: HashMap<ClientId, Entry>,
    /// Each once: of very many clients most may do the same.
    rules: HashSet<Arc<ClientRules>>,
}

#[derive(Debug, Clone)]
struct Entry {
    introduction: Introduction,
    /// The name that the administrator gave it.
    name: Arc<str>,
    rules: Arc<ClientRules>,
}

impl Clients {
    /// Adds a key that a client knocks with.
    pub fn known(
        &mut self,
        id: ClientId,
        introduction: Introduction,
        name: &str,
        rules: &ClientRules,
    ) {
        let entry = self.entry(introduction, name, rules);
        self.known.insert(id, entry);
    }

    /// Adds the invitation of a client.
    pub fn invited(
        &mut self,
        id: ClientId,
        introduction: Introduction,
        name: &str,
        rules: &ClientRules,
    ) {
        let entry = self.entry(introduction, name, rules);
        self.invited.insert(id, entry);
    }

    /// Copies, so that nothing is held of what a whole configuration was read into.
    fn entry(&mut self, introduction: Introduction, name: &str, rules: &ClientRules) -> Entry {
        let rules = self.rules.get(rules).cloned().unwrap_or_else(|| {
            let rules = Arc::new(rules.clone());
            self.rules.insert(Arc::clone(&rules));
            rules
        });
        Entry { introduction, name: name.into(), rules }
    }

    fn all(&self) -> impl Iterator<Item = (&ClientId, &Entry)> {
        self.known.iter().chain(&self.invited)
    }

    fn get_mut(&mut self, id: &ClientId) -> Option<&mut Entry> {
        self.known.get_mut(id).or_else(|| self.invited.get_mut(id))
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
/// The last three are not judged here, since they depend on what is open already: the limits
/// speak the same language, so that `status` counts all refusals alike.
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
        let mut known = Clients::default();
        for (id, name, rules) in clients {
            known.known(id, Introduction::Key(id.into()), name, &rules);
        }
        Self::of_clients(services, known)
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
        if let Some(entry) = policy.clients.get_mut(of).cloned() {
            policy.clients.known.insert(key, entry);
        }
        policy
    }

    /// The same policy without this key.
    #[must_use]
    pub fn without_key(&self, key: &ClientId) -> Self {
        let mut policy = self.clone();
        policy.clients.known.remove(key);
        policy
    }

    /// The rules of one client.
    pub fn client(&self, client: &ClientId) -> Option<&ClientRules> {
        self.clients.known.get(client).map(|entry| &*entry.rules)
    }

    /// What the client is called that knocks with this key, or was invited so.
    pub fn name(&self, id: &ClientId) -> Option<&str> {
        self.entry(id).map(|entry| &*entry.name)
    }

    /// Whether this key, or this invitation, is one of a client that is not disabled.
    pub fn is_enabled(&self, id: &ClientId) -> bool {
        self.entry(id).is_some_and(|entry| entry.rules.enabled)
    }

    fn entry(&self, id: &ClientId) -> Option<&Entry> {
        self.clients.known.get(id).or_else(|| self.clients.invited.get(id))
    }

    /// The keys of the client of that name: none, where it was invited and has not come.
    pub fn clients_named(&self, name: &str) -> Option<Vec<ClientId>> {
        let is_meant = |entry: &Entry| &*entry.name == name;
        let known = self.clients.known.iter().filter(|(_, entry)| is_meant(entry));
        let keys: Vec<_> = known.map(|(id, _)| *id).collect();
        let exists = !keys.is_empty() || self.clients.invited.values().any(is_meant);
        exists.then_some(keys)
    }

    /// Keys and invitations of those who are not disabled, and what is known of them.
    pub fn enabled(&self) -> impl Iterator<Item = (ClientId, &Introduction, &str)> {
        let enabled = self.clients.all().filter(|(_, entry)| entry.rules.enabled);
        enabled.map(|(id, entry)| (*id, &entry.introduction, &*entry.name))
    }

    /// The same policy with these keys and invitations disabled.
    #[must_use]
    pub fn without(&self, clients: &[ClientId]) -> Self {
        let mut policy = self.clone();
        for client in clients {
            if let Some(entry) = policy.clients.get_mut(client) {
                Arc::make_mut(&mut entry.rules).enabled = false;
            }
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
        Ok(Permit { client: Arc::clone(&entry.name), source, grants, lifetime })
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
        let entry = self.clients.known.get(client).ok_or(Refusal::UnknownClient)?;
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
    ) -> Result<&Arc<str>, Refusal> {
        let entry = self.entry(sender).ok_or(Refusal::UnknownClient)?;
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
            Self::Lifetime { asked, max } => {
                write!(f, " (asked {} s, maximum {} s)", asked.as_secs(), max.as_secs())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
