//! `parked browse`: a parking queue in a terminal. The queue is kept from nobody while somebody
//! reads: it is looked at when this begins, when that is asked for, and after a change.

mod detail;
mod state;
mod view;

use futures_util::future::BoxFuture;
use lapin_idempotent::consumer::ConsumeError;

use self::state::{Browser, Change, Todo};
use crate::{
    ask::{Done, Failure, chain},
    options::Queue,
    parked::limit,
    print::escaped,
    screen::{self, Input, Screen},
    servers::Servers,
    snapshot::{ParkingQueue, Snapshot},
};

/// As many messages as are looked at.
const MOST: u64 = 10_000;
/// How often it says anew how long ago the queue was read.
const TICK: std::time::Duration = std::time::Duration::from_secs(1);

/// What came of a change, if there was one, and what is there now.
type Outcome = (Option<Result<String, ConsumeError>>, Result<Snapshot, ConsumeError>);

pub(crate) async fn run(queue: &Queue, servers: &Servers) -> Result<Done, Failure> {
    let amqp = servers.amqp()?;
    if !screen::is_there() {
        return Err(Failure::usage("no terminal is there to browse on: `parked list` needs none"));
    }
    let parking =
        ParkingQueue { amqp: amqp.to_owned(), name: queue.queue.clone(), delivery_limit: limit(queue) };
    let mut browser = Browser::new(&queue.queue);
    let mut screen = Screen::open()?;
    let mut under_way = Some(begun(&mut browser, &parking, None));
    let mut is_warned = false;
    loop {
        screen.draw(|frame| view::draw(frame, &mut browser))?;
        let input = tokio::select! {
            input = screen.input() => input,
            outcome = ended(&mut under_way) => {
                under_way = None;
                take(&mut browser, outcome, servers);
                continue;
            }
            () = tokio::time::sleep(TICK) => Input::Redraw,
        };
        let todo = match input {
            Input::End => return Ok(Done::Well),
            Input::Redraw => continue,
            Input::Key(key) => browser.pressed(key),
            Input::Paste(text) => {
                browser.pasted(&text);
                continue;
            }
        };
        match todo {
            Todo::Nothing => {}
            Todo::Read => under_way = Some(begun(&mut browser, &parking, None)),
            Todo::Change(change) => {
                is_warned = false;
                under_way = Some(begun(&mut browser, &parking, Some(change)));
            }
            // Half of a change is easily done.
            Todo::Quit if under_way.is_some() && browser.busy != Some(READING) && !is_warned => {
                is_warned = true;
                "it is not done yet: q once more leaves it half done".clone_into(&mut browser.said);
            }
            Todo::Quit => return Ok(Done::Well),
        }
    }
}

const READING: &str = "reading";

fn begun(
    browser: &mut Browser,
    parking: &ParkingQueue,
    change: Option<Change>,
) -> BoxFuture<'static, Outcome> {
    browser.busy = Some(match &change {
        None => READING,
        Some(Change::Unpark(_)) => "putting back",
        Some(Change::Discard(..)) => "deleting",
    });
    browser.said.clear();
    let parking = parking.clone();
    Box::pin(async move {
        let changed = match change {
            Some(change) => Some(changed(&parking, change).await),
            None => None,
        };
        (changed, parking.snapshot(MOST).await)
    })
}

/// What is under way, once it has ended; never, if nothing is.
async fn ended(under_way: &mut Option<BoxFuture<'static, Outcome>>) -> Outcome {
    match under_way {
        Some(under_way) => under_way.await,
        None => std::future::pending().await,
    }
}

async fn changed(parking: &ParkingQueue, change: Change) -> Result<String, ConsumeError> {
    match change {
        Change::Unpark(keys) => {
            let unparked = parking.unpark(keys).await?;
            let mut said = format!("{} put back", unparked.moved);
            if unparked.failed > 0 {
                let error = unparked.last_error.unwrap_or_default();
                said = format!("{said}, {} could not be and stay: {error}", unparked.failed);
            }
            Ok(said)
        }
        Change::Discard(keys, because) => {
            let looked = parking.discard(&keys, &because).await?;
            Ok(format!("{} deleted", looked.discarded))
        }
    }
}

fn take(browser: &mut Browser, (changed, snapshot): Outcome, servers: &Servers) {
    browser.busy = None;
    let mut said = Vec::new();
    let mut say = |text: &str| said.push(escaped(&servers.without_secrets(text), 1000));
    match changed {
        Some(Ok(text)) => say(&text),
        Some(Err(error)) => say(&format!("failed: {}", chain(&error))),
        None => {}
    }
    match snapshot {
        Ok(snapshot) => {
            if snapshot.renewed > 0 {
                say(&format!(
                    "{} went to the end of the queue, lest the broker count them out",
                    snapshot.renewed
                ));
            }
            browser.take(snapshot);
        }
        Err(error) => say(&format!("not read: {}", chain(&error))),
    }
    browser.said = said.join("; ");
}
