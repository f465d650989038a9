//! From one generation to the next: what was in flight, and how a new channel is come by.

use std::{collections::VecDeque, future::Future, pin::pin, sync::Arc, time::Duration};

use lapin::{Channel, types::ShortString};
use tokio::time::{Instant, interval, timeout};

use super::{INTAKE, Lane};
use crate::{
    amqp::{ConnectError, Connection},
    error::{BoxError, Chain},
    publisher::{
        RetryPolicy, attempt::show, confirms::Window, error::PublishErrorKind, job::Verdict,
        lanes::Surroundings,
    },
};

/// The reply code of a publish to an exchange that does not exist.
const NOT_FOUND: u16 = 404;

/// How long the broker may take to close a channel.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl Lane {
    /// One refused message ends the channel for all that are in flight. The broker does not say which it was: if it was
    /// alone, its caller is told and the others never notice; if not, each of them is sent alone next time.
    pub(super) fn find_culprit(
        &mut self,
        code: u16,
        error: BoxError,
        window: &mut Window,
    ) -> Option<BoxError> {
        if window.len() > 1 {
            window.suspect_all();
            return Some(error);
        }
        let kind = if code == NOT_FOUND { PublishErrorKind::Unroutable } else { PublishErrorKind::Refused };
        tracing::debug!(error = %error, "the broker closed the channel over one message");
        let refused: Arc<dyn std::error::Error + Send + Sync> = Arc::from(error);
        let lone = std::mem::take(window).into_unknown();
        self.judged.extend(lone.map(|(job, _)| (job, Verdict::Refused(kind, Arc::clone(&refused)))));
        self.answer(Instant::now());
        None
    }

    /// Puts what was in flight back in front, in the order in which it was sent.
    pub(super) fn resend(&mut self, window: Window, source: BoxError) {
        let now = Instant::now();
        let Surroundings { options, monitor, .. } = &self.around;
        let source: Arc<dyn std::error::Error + Send + Sync> = Arc::from(source);
        let mut again = VecDeque::new();
        for (job, sent_at) in window.into_unknown() {
            // One late confirm ends the channel for all: to the others it is a lost channel.
            let late = now - sent_at > options.confirm_timeout;
            let kind = if late { PublishErrorKind::TimedOut } else { PublishErrorKind::Disconnected };
            monitor.count(kind, 1);
            show(&options.on_attempt, &job, Err(kind));
            let source = Some(Box::new(Arc::clone(&source)) as BoxError);
            again.extend(job.outcome_unknown(kind, source, &options.retry, now));
        }
        again.append(&mut self.ready);
        self.ready = again;
    }

    /// Opens the next generation, with backoff, while deadlines go on being kept.
    pub(super) async fn reopen(&mut self) -> Option<(Arc<Connection>, Channel)> {
        let link = Arc::clone(&self.link);
        let backoff = RetryPolicy::default().max_delay(Duration::from_secs(3));
        for attempt in 1.. {
            match self.meanwhile(link.channel()).await? {
                Ok(generation) => {
                    tracing::info!("publishing channel open");
                    self.around.monitor.reconnected(self.number);
                    return Some(generation);
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), attempt, "cannot open a publishing channel");
                    self.around.monitor.error(Chain(&error).to_string());
                    self.give_away();
                    self.blame(error);
                }
            }
            self.meanwhile(tokio::time::sleep(backoff.delay(attempt))).await?;
        }
        None
    }

    /// Another lane that is up may take what waits here.
    pub(super) fn give_away(&mut self) {
        if let Some(lanes) = self.around.lanes.upgrade() {
            for job in std::mem::take(&mut self.ready) {
                self.ready.extend(lanes.adopt(job, self.number));
            }
        }
    }

    /// Messages that run out of time before there is a connection say why.
    pub(super) fn blame(&mut self, error: ConnectError) {
        let error: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error);
        for job in &mut self.ready {
            job.note(PublishErrorKind::Disconnected, Some(Box::new(Arc::clone(&error))));
        }
    }

    /// Awaits `step` while messages are taken in and deadlines are kept; `None` if the lane is to end instead.
    pub(super) async fn meanwhile<T>(&mut self, step: impl Future<Output = T>) -> Option<T> {
        let mut step = pin!(step);
        let mut tick = interval(self.around.options.resolution());
        loop {
            if self.is_done(true) {
                return None;
            }
            tokio::select! {
                output = &mut step => return Some(output),
                taken = self.jobs.recv_many(&mut self.intake, INTAKE), if self.open => self.take_in(taken),
                _ = tick.tick() => self.sweep(Instant::now()),
            }
        }
    }
}

/// Closes a channel on which nothing is in flight; lapin would never resolve what is.
pub(super) async fn close_channel(channel: &Channel) {
    let _ = timeout(CLOSE_TIMEOUT, channel.close(200, ShortString::default())).await;
}
