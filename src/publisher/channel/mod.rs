//! One channel of a publisher: its queue, its task, and what the broker's answers prove.
//!
//! Nobody outside calls what is in here but through a [`Dispatcher`].

mod attempt;
mod confirms;
mod context;
mod isolation;
mod job;
mod nack_watch;
mod queue;
mod ready_set;
mod replies;
mod retries;
mod worker;

pub(super) use context::{WorkerContext, WorkerOptions};
pub(super) use job::Job;
pub(super) use queue::{Dispatcher, JobSender};
pub(super) use replies::{HandedOver, Reply};
pub(super) use worker::ChannelWorker;
