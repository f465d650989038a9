//! What a table tells of itself, and to whom.

use std::{error::Error, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    Transactions,
    handles::{Handles, row, rows, same},
};
use crate::{
    idempotency::StoreErrorKind,
    outbox::{NewRow, Outbox},
    testing::conformance::{
        fixture::{Outcome, Stop, ensure, error, failed},
        runner::Cases,
    },
};

/// How long a table is watched that may tell nothing of other processes.
const GLANCE: Duration = Duration::from_secs(2);

/// Tables may keep times by the millisecond, or by the second.
const GRAIN: Duration = Duration::from_secs(1);

pub(super) async fn all<O: Outbox, T: Transactions<O>>(cases: &mut Cases<'_, Handles<O, T>>) {
    cases.case(("status_counts_what_is_there", "status"), &[], Handles::counts).await;
    cases.case(("age_is_since_the_row_was_put_in", "read"), &[], Handles::ages).await;
    cases
        .case(("relays_of_the_process_are_woken", "wake"), &[], |handles| std::future::ready(handles.wakes()))
        .await;
    cases.case(("relays_that_hear_are_woken_by_others", "listen"), &[], Handles::hears).await;
    cases.case(("outbox_is_ready", "check"), &[], Handles::ready).await;
}

pub(super) async fn missing<O: Outbox>(cases: &mut Cases<'_, O>) {
    cases.case(("check_tells_what_is_missing", "check"), &[], tells).await;
}

async fn tells<O: Outbox>(outbox: O) -> Outcome {
    let Err(error) = outbox.check().await else {
        return Err(failed("check without tables: expected an error; came Ok"));
    };
    same("the kind of the error", &error.kind(), &StoreErrorKind::Schema)?;
    ensure!(error.source().is_some(), "the error: expected a source that says what is missing; it has none");
    Ok(())
}

impl<O: Outbox, T: Transactions<O>> Handles<O, T> {
    async fn status(&self, when: &str, expected: (u64, bool, u64, u64)) -> Outcome {
        let status = self.b.status().await.map_err(error("status"))?;
        let came = (status.backlog, status.oldest.is_some(), status.parked, status.relays);
        let what = format!("backlog, whether there is an oldest row, parked rows and relays, {when}");
        same(&what, &came, &expected)
    }

    async fn counts(self) -> Outcome {
        self.status("of nothing", (0, false, 0, 0)).await?;
        let mut put = rows("a", 5);
        put.push(NewRow { lane: self.last(), ..row("last") });
        self.put(&put).await?;
        self.status("of six rows", (6, true, 0, 0)).await?;
        let all = self.confirmed().await?;
        self.park(&all[..2]).await?;
        self.status("of six rows, two of them parked", (4, true, 2, 0)).await?;
        let first = self.relay(&self.a).await?;
        self.relay(&self.b).await?;
        self.status("with two relays", (4, true, 2, 2)).await?;
        self.leave(first).await?;
        self.b.remove(&all[2..]).await.map_err(error("remove"))?;
        self.status("with one relay, and parked rows only", (0, false, 2, 1)).await
    }

    async fn ages(self) -> Outcome {
        let before = Instant::now();
        self.put(&[row("old")]).await?;
        let put = Instant::now();
        sleep(GRAIN * 3 / 2).await;
        self.put(&[row("young")]).await?;
        let (from, young) = (put.elapsed().saturating_sub(GRAIN), Instant::now());
        let status = self.b.status().await.map_err(error("status"))?;
        let rows = self.all().await?;
        let upto = before.elapsed() + GRAIN;
        for age in [status.oldest, rows.first().map(|row| row.age)] {
            ensure!(
                age.is_some_and(|age| age >= from && age <= upto),
                "age of the oldest row: expected {from:?} to {upto:?}; came {age:?}"
            );
        }
        let (age, upto) = (rows.last().map(|row| row.age), young.elapsed() + GRAIN);
        ensure!(
            age.is_some_and(|age| age <= upto),
            "age of the youngest row: expected at most {upto:?}; came {age:?}"
        );
        Ok(())
    }

    fn wakes(&self) -> Outcome {
        let mut woken = self.a.waker().subscribe();
        let gone = |_| failed("waker: expected a signal that stays; it is gone");
        same("whether relays are woken unasked", &woken.has_changed().map_err(gone)?, &false)?;
        for _ in 0..2 {
            self.a.wake();
            same("whether relays are woken", &woken.has_changed().map_err(gone)?, &true)?;
            woken.mark_unchanged();
        }
        Ok(())
    }

    async fn hears(self) -> Outcome {
        let (sender, mut hears) = watch::channel(false);
        let mut woken = self.a.waker().subscribe();
        let telling = async {
            let heard = timeout(GLANCE, async { hears.wait_for(|hears| *hears).await.map(|_| ()) }).await;
            match heard {
                Err(_) => return Err(Stop::NotApplicable("it does not hear of other processes".to_owned())),
                Ok(Err(_)) => return Err(failed("listen: expected it to keep its sender; it dropped it")),
                Ok(Ok(())) => {}
            }
            woken.mark_unchanged();
            self.put_by(&self.b, &[row("a")]).await?;
            self.b.wake();
            let patience = self.capabilities.patience();
            match timeout(patience, woken.changed()).await {
                Ok(Ok(())) => Ok(()),
                _ => Err(failed(format!(
                    "a relay that hears: expected to be woken within {patience:?}; it was not"
                ))),
            }
        };
        tokio::select! {
            told = telling => told,
            () = self.a.listen(sender) => Err(failed("listen: expected no end; it has ended")),
        }
    }

    async fn ready(self) -> Outcome {
        self.a.check().await.map_err(error("check"))
    }
}
