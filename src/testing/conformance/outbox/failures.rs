//! Failures are noted, by whoever has the lane.

use std::time::Duration;

use super::{
    Transactions,
    handles::{Handles, LONG, OVER, SHORT, counted, row, rows, same, strangers},
};
use crate::{
    outbox::{Confirmed, Failed, Lane, NewRow, Next, Outbox, RowId, Term},
    testing::conformance::{
        fixture::{Outcome, ensure, error},
        runner::Cases,
    },
};
use tokio::time::sleep;

pub(super) async fn all<O: Outbox, T: Transactions<O>>(cases: &mut Cases<'_, Handles<O, T>>) {
    cases.case(("failure_is_counted", "fail"), &[], Handles::attempts).await;
    cases.case(("row_is_left_alone_for_its_pause", "fail"), &[], Handles::pause).await;
    cases.case(("failure_of_a_lost_lane_changes_nothing", "contract 6"), &[], Handles::fenced).await;
    cases.case(("failures_are_noted_beside_lost_lanes", "contract 6"), &[], Handles::beside).await;
    cases.case(("failure_of_another_message_changes_nothing", "contract 6"), &[], Handles::not_its_own).await;
    cases.case(("failure_of_a_row_that_is_gone_is_none", "fail"), &[], Handles::gone).await;
}

impl<O: Outbox, T: Transactions<O>> Handles<O, T> {
    async fn attempts(self) -> Outcome {
        self.put(&rows("a", 3)).await?;
        let all = self.confirmed().await?;
        let again = |row: &Confirmed| counted(row, Next::Retry(LONG));
        self.note(again(&all[0])).await?;
        self.note(again(&all[0])).await?;
        self.note(Failed { counted: false, ..again(&all[1]) }).await?;
        let attempts: Vec<u32> = self.all().await?.iter().map(|row| row.attempts).collect();
        same("attempts, after two, one that is not counted, and none", &attempts, &[2, 0, 0])
    }

    async fn pause(self) -> Outcome {
        self.put(&rows("a", 3)).await?;
        let all = self.confirmed().await?;
        self.note(counted(&all[0], Next::Retry(LONG))).await?;
        self.note(counted(&all[1], Next::Retry(Duration::ZERO))).await?;
        let left: Vec<Duration> = self.all().await?.iter().map(|row| row.retry_in).collect();
        ensure!(
            left.first().is_some_and(|left| *left > LONG / 2 && *left <= LONG + Duration::from_secs(1)),
            "how long it is to be left alone: expected about {LONG:?}; came {left:?}"
        );
        same("how long the others are", &left[1..], &[Duration::ZERO; 2])?;
        // It is over by itself, by the table's clock.
        self.note(counted(&all[0], Next::Retry(SHORT))).await?;
        sleep(OVER).await;
        let left = self.all().await?.first().map(|row| row.retry_in);
        same("how long it is to be left alone, after its pause", &left, &Some(Duration::ZERO))
    }

    /// Checks that these terms are of no use.
    async fn changes_nothing(&self, when: &str, held: &[Term], of: &Confirmed) -> Outcome {
        for next in [Next::Retry(LONG), Next::Park] {
            let lost = self.fail(held, &[counted(of, next)]).await?;
            if !held.is_empty() {
                same(&format!("lanes that are lost, {when}"), &lost, &[of.row.lane])?;
            }
            let now = self.all().await?;
            let now: Vec<_> = now.iter().map(|row| (row.id, row.attempts, row.retry_in)).collect();
            same(&format!("the row, {when}"), &now, &[(of.row, 0, Duration::ZERO)])?;
            same(&format!("parked rows, {when}"), &self.parked().await?.len(), &0)?;
        }
        Ok(())
    }

    async fn fenced(self) -> Outcome {
        self.put(&rows("a", 1)).await?;
        let row = &self.confirmed().await?[0];
        self.changes_nothing("without a term", &[], row).await?;
        let (old, term) = self.take(Lane(0)).await?;
        for wrong in [term.term - 1, term.term + 1] {
            self.changes_nothing("with a wrong term", &[Term { term: wrong, ..term }], row).await?;
        }
        self.leave(old).await?;
        let (new, _) = self.take(Lane(0)).await?;
        self.changes_nothing("with a term of before", &[term], row).await?;
        let mine = self.owner(Lane(0)).await?.0;
        self.leave(new).await?;
        self.changes_nothing("after the relay left", &[mine], row).await
    }

    async fn beside(self) -> Outcome {
        self.has_lanes()?;
        let last = self.last();
        let spread = |(n, row)| NewRow { lane: if n == 0 { Lane(0) } else { last }, ..row };
        let put: Vec<NewRow> = rows("a", 2).into_iter().enumerate().map(spread).collect();
        self.put(&put).await?;
        let all = self.confirmed().await?;
        let failures: Vec<Failed> = all.iter().map(|row| counted(row, Next::Retry(LONG))).collect();
        let (_, held) = self.take(last).await?;
        let lost = self.owner(Lane(0)).await?.0;
        let lost = self.fail(&[lost, held], &failures).await?;
        same("lanes that are lost", &lost, &[Lane(0)])?;
        let attempts: Vec<u32> = self.all().await?.iter().map(|row| row.attempts).collect();
        same("attempts, in a lane that nobody has and in one that is held", &attempts, &[0, 1])
    }

    async fn not_its_own(self) -> Outcome {
        self.put(&[row("A"), row("Stra\u{df}e \u{1f980} "), row("E\u{301}")]).await?;
        let all = self.confirmed().await?;
        let (_, term) = self.take(Lane(0)).await?;
        for other in strangers(&all).iter().flatten() {
            for next in [Next::Retry(LONG), Next::Park] {
                let lost = self.fail(&[term], &[counted(other, next)]).await?;
                same("lanes that are lost", &lost, &[] as &[Lane; 0])?;
            }
        }
        let rows = self.all().await?;
        let untouched: Vec<(u32, bool)> =
            rows.iter().map(|row| (row.attempts, row.retry_in.is_zero())).collect();
        let what = "attempts, and whether it may be sent, of rows whose numbers others failed under";
        same(what, &untouched, &[(0, true); 3])
    }

    async fn gone(self) -> Outcome {
        self.put(&rows("a", 3)).await?;
        let all = self.confirmed().await?;
        self.b.remove(&all[..1]).await.map_err(error("remove"))?;
        let (_, term) = self.take(Lane(0)).await?;
        // The second time it is in its lane no more, either.
        for _ in 0..2 {
            let failures = [counted(&all[0], Next::Retry(LONG)), counted(&all[1], Next::Park)];
            same("lanes that are lost", &self.fail(&[term], &failures).await?, &[] as &[Lane; 0])?;
            self.holds("after that", &["a2"]).await?;
            let parked: Vec<(RowId, u32)> =
                self.parked().await?.iter().map(|parked| (parked.row.id, parked.row.attempts)).collect();
            same("parked rows, with their attempts", &parked, &[(all[1].row, 1)])?;
        }
        Ok(())
    }
}
