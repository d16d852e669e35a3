//! The sessions that share a channel: their streams, what they subscribed to, and what the server asked them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::inbox::End;
use super::inbox::Inbox;
use crate::mcp::Id;

/// Sessions on one channel.
const GUESTS_MAX: usize = 1_000;

/// Sessions of one principal on one channel.
const GUESTS_PER_PRINCIPAL_MAX: usize = 100;

/// Resources that one session is told about.
const SUBSCRIPTIONS_MAX: usize = 1_000;

/// Requests of the server that are not answered yet, of one session.
const ASKED_MAX: usize = 100;

#[derive(Default)]
pub(super) struct Guests {
    sessions: BTreeMap<Arc<str>, Guest>,
    /// The first principal that came; the gateway itself does not count.
    first: Option<Box<str>>,
    /// Sessions of other principals came too: even the only one that is left is not the only one that can be meant.
    strangers: bool,
}

struct Guest {
    owner: Box<str>,
    /// What its client said it can do.
    capabilities: Vec<String>,
    /// Server messages that belong to no request.
    messages: Arc<Inbox>,
    streams: usize,
    used: Instant,
    subscribed: BTreeSet<String>,
    asked: Vec<Asked>,
}

/// A request of the server that a client is to answer.
struct Asked {
    id: Id,
    token: Option<String>,
    /// Where it was put.
    inbox: Arc<Inbox>,
}

/// What a guest leaves undone.
pub(super) struct Left {
    /// Ids of the server's requests, as JSON text.
    pub(super) asked: Vec<String>,
    /// Resources that nobody listens to any more.
    pub(super) unheard: Vec<String>,
}

impl Guests {
    pub(super) fn join(
        &mut self,
        session: Arc<str>,
        owner: &str,
        capabilities: Vec<String>,
        messages: Arc<Inbox>,
    ) -> Result<(), String> {
        if self.sessions.len() >= GUESTS_MAX {
            return Err(format!("{GUESTS_MAX} sessions share it already"));
        }
        let own = self.sessions.values().filter(|guest| guest.owner.as_ref() == owner).count();
        if own >= GUESTS_PER_PRINCIPAL_MAX {
            return Err(format!("{GUESTS_PER_PRINCIPAL_MAX} sessions of this principal share it already"));
        }
        if !owner.is_empty() {
            self.strangers |= self.first.get_or_insert_with(|| owner.into()).as_ref() != owner;
        }
        let guest = Guest {
            owner: owner.into(),
            capabilities,
            messages,
            streams: 0,
            used: Instant::now(),
            subscribed: BTreeSet::new(),
            asked: Vec::new(),
        };
        self.sessions.insert(session, guest);
        Ok(())
    }

    pub(super) fn leave(&mut self, session: &str) -> Option<Left> {
        let guest = self.sessions.remove(session)?;
        guest.messages.end(End::Closed);
        let heard = |uri: &String| self.sessions.values().any(|other| other.subscribed.contains(uri));
        Some(Left {
            asked: guest.asked.iter().map(|asked| asked.id.as_json().to_owned()).collect(),
            unheard: guest.subscribed.iter().filter(|uri| !heard(uri)).cloned().collect(),
        })
    }

    /// All sessions end.
    pub(super) fn close(self) -> Vec<Arc<str>> {
        self.sessions.values().for_each(|guest| guest.messages.end(End::Closed));
        self.sessions.into_keys().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Have there been sessions of several principals?
    pub(super) fn are_mixed(&self) -> bool {
        self.strangers
    }

    /// The session is used now.
    pub(super) fn touch(&mut self, session: &str) -> Option<Arc<str>> {
        let (session, _) = self.sessions.get_key_value(session)?;
        let session = session.clone();
        if let Some(guest) = self.sessions.get_mut(&session) {
            guest.used = Instant::now();
        }
        Some(session)
    }

    /// Sessions that nobody used for so long.
    pub(super) fn unused(&self, longer_than: Duration) -> Vec<Arc<str>> {
        let unused = |guest: &Guest| guest.streams == 0 && guest.used.elapsed() >= longer_than;
        self.sessions.iter().filter(|(_, guest)| unused(guest)).map(|(session, _)| session.clone()).collect()
    }

    pub(super) fn listen(&mut self, session: &str) -> Option<(Arc<str>, Arc<Inbox>)> {
        let session = self.touch(session)?;
        let guest = self.sessions.get_mut(&session)?;
        guest.streams += 1;
        Some((session, guest.messages.clone()))
    }

    pub(super) fn listens_no_more(&mut self, session: &str) {
        if let Some(guest) = self.sessions.get_mut(session) {
            guest.streams = guest.streams.saturating_sub(1);
            guest.used = Instant::now();
        }
    }

    pub(super) fn listening(&self) -> bool {
        self.sessions.values().any(|guest| guest.streams > 0)
    }

    /// The one session that there is, on a channel that never had another principal's.
    pub(super) fn only_one(&self) -> Option<(Arc<str>, Arc<Inbox>)> {
        if self.strangers {
            return None;
        }
        let mut all = self.sessions.iter();
        match (all.next(), all.next()) {
            (Some((session, guest)), None) => Some((session.clone(), guest.messages.clone())),
            _ => None,
        }
    }

    pub(super) fn only(&self) -> Option<Arc<Inbox>> {
        self.only_one().map(|(_, messages)| messages)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Inbox>> {
        self.sessions.values().map(|guest| &guest.messages)
    }

    /// `false`: there are too many.
    pub(super) fn subscribe(&mut self, session: &str, uri: &str) -> bool {
        let Some(guest) = self.sessions.get_mut(session) else {
            return false;
        };
        if guest.subscribed.len() >= SUBSCRIPTIONS_MAX && !guest.subscribed.contains(uri) {
            return false;
        }
        guest.subscribed.insert(uri.to_owned());
        true
    }

    /// Does another session still listen to it?
    pub(super) fn unsubscribe(&mut self, session: &str, uri: &str) -> bool {
        if let Some(guest) = self.sessions.get_mut(session) {
            guest.subscribed.remove(uri);
        }
        self.sessions.values().any(|guest| guest.subscribed.contains(uri))
    }

    /// The streams of those who subscribed to this resource, or to one that it is a part of.
    pub(super) fn subscribed(&self, uri: &str) -> impl Iterator<Item = &Arc<Inbox>> {
        let about = move |guest: &&Guest| guest.subscribed.iter().any(|listened| is_within(uri, listened));
        self.sessions.values().filter(about).map(|guest| &guest.messages)
    }

    /// The server asks this session. `false`: its client did not say it can do that, or was asked too much already.
    pub(super) fn ask(
        &mut self,
        session: &str,
        id: Id,
        method: &str,
        token: Option<String>,
        inbox: Arc<Inbox>,
    ) -> bool {
        let needed = match method {
            "sampling/createMessage" => Some("sampling"),
            "elicitation/create" => Some("elicitation"),
            "roots/list" => Some("roots"),
            _ => None,
        };
        let others = self.sessions.values().flat_map(|guest| &guest.asked).any(|asked| asked.id.same(&id));
        let Some(guest) = self.sessions.get_mut(session) else {
            return false;
        };
        let able = needed.is_none_or(|needed| guest.capabilities.iter().any(|capability| capability == needed));
        if guest.asked.len() >= ASKED_MAX {
            // What was asked in a call that is over is hardly waited for any more.
            // The one that is asked into now is locked by whoever asks, and not over.
            guest.asked.retain(|asked| Arc::ptr_eq(&asked.inbox, &inbox) || !asked.inbox.is_over());
        }
        let good = able && !others && guest.asked.len() < ASKED_MAX;
        if good {
            guest.asked.push(Asked { id, token, inbox });
        }
        good
    }

    /// The session answers what the server asked it. `false`: it was not asked that.
    pub(super) fn answered(&mut self, session: &str, id: &Id) -> bool {
        let Some(guest) = self.sessions.get_mut(session) else {
            return false;
        };
        let place = guest.asked.iter().position(|asked| asked.id.same(id));
        place.map(|place| guest.asked.swap_remove(place)).is_some()
    }

    /// Was the session asked something that has this progress token?
    pub(super) fn works_on(&self, session: &str, token: &str) -> bool {
        let asked = self.sessions.get(session).map(|guest| guest.asked.as_slice()).unwrap_or_default();
        asked.iter().any(|asked| asked.token.as_deref() == Some(token))
    }

    /// The server does not want to know any more: where it had asked.
    pub(super) fn take_back(&mut self, id: &Id) -> Option<Arc<Inbox>> {
        self.sessions.values_mut().find_map(|guest| {
            let place = guest.asked.iter().position(|asked| asked.id.same(id))?;
            Some(guest.asked.swap_remove(place).inbox)
        })
    }
}

/// SPEC: resources §Subscriptions: what changed may be a part of what was subscribed to.
fn is_within(uri: &str, listened: &str) -> bool {
    match uri.strip_prefix(listened) {
        None => false,
        Some(rest) => rest.is_empty() || listened.ends_with('/') || rest.starts_with(['/', '#', '?']),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(sessions: &[&str]) -> Guests {
        let mut guests = Guests::default();
        for session in sessions {
            let joined = guests.join((*session).into(), session, vec!["roots".into()], Arc::new(Inbox::new(100)));
            assert_eq!(joined, Ok(()));
        }
        guests
    }

    fn id(text: &str) -> Id {
        Id::from_json(text).expect("an id")
    }

    #[test]
    fn a_resource_is_heard_by_those_who_subscribed_to_it_or_to_what_holds_it() {
        let mut guests = guests(&["a", "b"]);
        assert!(guests.subscribe("a", "file:///x"));
        assert_eq!(guests.subscribed("file:///x").count(), 1);
        assert_eq!(guests.subscribed("file:///x/y").count(), 1);
        assert_eq!(guests.subscribed("file:///xy").count(), 0);
        assert!(guests.subscribe("b", "file:///x"));
        assert!(guests.unsubscribe("a", "file:///x"), "the other one still listens");
        assert!(!guests.unsubscribe("b", "file:///x"));
        guests.subscribe("a", "u:1");
        assert_eq!(guests.leave("a").expect("was there").unheard, ["u:1"]);
    }

    #[test]
    fn only_who_was_asked_and_can_do_it_may_answer() {
        let mut guests = guests(&["a", "b"]);
        let inbox = Arc::new(Inbox::new(100));
        assert!(guests.ask("a", id("1"), "roots/list", Some("7".into()), inbox.clone()));
        assert!(!guests.ask("b", id("1"), "roots/list", None, inbox.clone()), "two requests with one id");
        assert!(!guests.ask("b", id("2"), "sampling/createMessage", None, inbox.clone()));
        assert!(!guests.answered("b", &id("1")));
        assert!(guests.works_on("a", "7") && !guests.works_on("b", "7"));
        assert!(guests.answered("a", &id("1")));
        assert!(!guests.answered("a", &id("1")), "once");
        assert!(guests.ask("a", id("3"), "ping", None, inbox));
        assert_eq!(guests.leave("a").expect("was there").asked, ["3"]);
    }

    #[test]
    fn one_principal_cannot_take_all_places() {
        let mut guests = Guests::default();
        let mut join = |session: String, owner: &str| {
            guests.join(session.as_str().into(), owner, Vec::new(), Arc::new(Inbox::new(1))).is_ok()
        };
        let joined = (0..GUESTS_MAX).filter(|at| join(format!("a{at}"), "anna")).count();
        assert_eq!(joined, GUESTS_PER_PRINCIPAL_MAX);
        assert!(join("b".into(), "bert"));
    }
}
