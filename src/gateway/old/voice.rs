//! What is written to one connection's stream, and the end of its session with it.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use futures_util::stream::BoxStream;
use futures_util::stream::SelectAll;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Berth;
use super::Heard;
use super::ask;
use super::berth::Job;
use super::within;
use crate::exchange::Verb;
use crate::gateway::Gateway;
use crate::gateway::Open;
use crate::gateway::door::news::Watch;
use crate::gateway::errand::Errand;
use crate::gateway::flow::Passing;
use crate::mcp::sse::Event;

pub(super) struct Voice {
    gateway: Gateway,
    errand: Errand,
    name: String,
    berth: Arc<Berth>,
    jobs: mpsc::Receiver<Job>,
    talk: SelectAll<Job>,
    watch: Watch,
    /// The configuration has changed: it ends when what runs has been answered.
    ending: Option<&'static str>,
    /// For what is done without a record of its own.
    note: Open,
}

impl Voice {
    pub(super) fn new(
        gateway: Gateway,
        errand: Errand,
        name: String,
        berth: Arc<Berth>,
        jobs: mpsc::Receiver<Job>,
        note: Open,
    ) -> Voice {
        let watch = Watch::of(&errand);
        Voice { gateway, errand, name, berth, jobs, talk: SelectAll::new(), watch, ending: None, note }
    }

    pub(super) fn speak(self) -> BoxStream<'static, Passing> {
        stream::unfold(Some(self), |voice| async move { Some(voice?.next().await) }).boxed()
    }

    async fn next(mut self) -> (Passing, Option<Voice>) {
        loop {
            if let Some(how) = self.ending
                && !self.berth.is_busy()
            {
                return (Passing::End(how), None);
            }
            let heard = tokio::select! {
                biased;
                how = self.watch.ends() => {
                    if how == "token_expired" {
                        return (Passing::End(how), None);
                    }
                    self.ending = Some(how);
                    continue;
                }
                Some(job) = self.jobs.recv() => {
                    self.talk.push(job);
                    continue;
                }
                heard = self.talk.next(), if !self.talk.is_empty() => heard,
            };
            match heard {
                None => {}
                Some(Heard::Over(how)) => return (Passing::End(how), None),
                Some(Heard::Event(event)) => {
                    // Ids are for resuming, which this transport cannot; what carries no message is for resuming too.
                    if let Some(data) = event.data.filter(|data| !data.is_empty()) {
                        let event = Event { name: Some("message".to_owned()), ..Event::message(data) };
                        return (Passing::Message(event), Some(self));
                    }
                }
            }
        }
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        self.gateway.berths.leave(&self.name);
        let (Some(session), Ok(runtime)) = (self.berth.session(), Handle::try_current()) else { return };
        let (gateway, mut open) = (self.gateway.clone(), self.note.shadow());
        let errand = within(&self.errand.anew(), Verb::Delete, Some(session), None);
        runtime.spawn(async move {
            if let Err(rejection) = ask(&gateway, &errand, &mut open).await {
                tracing::debug!(?rejection, "a session was not ended with its stream");
            }
        });
    }
}
