//! What a read gives, and what it leaves out.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    Transactions,
    handles::{Handles, LONG, behind, counted, ids, keyed, row, rows, same},
};
use crate::{
    outbox::{Batch, Lane, NewRow, Next, Outbox, ReadRequest, Route, RowId},
    testing::conformance::{
        capabilities::Need::{Concurrency, Ended},
        fixture::{AGAIN, Outcome, Stop, ensure, error, failed},
        runner::Cases,
    },
};

/// More keys and routes than a statement may name in some databases.
const MANY: usize = 1500;

pub(super) async fn all<O: Outbox, T: Transactions<O>>(cases: &mut Cases<'_, Handles<O, T>>) {
    cases.case(("low_number_committed_late_is_read", "contract 4"), &[Concurrency], Handles::late).await;
    cases.case(("lane_is_read_behind_its_number", "contract 4"), &[], Handles::behind).await;
    cases.case(("lanes_are_read_in_order", "contract 4"), &[], Handles::in_order).await;
    cases.case(("rows_are_limited", "read"), &[], Handles::limited_rows).await;
    cases.case(("bytes_are_limited", "read"), &[], Handles::limited_bytes).await;
    cases.case(("oversized_row_is_read_alone", "read"), &[], Handles::oversized).await;
    cases.case(("given_rows_are_left_out", "read"), &[], Handles::without_rows).await;
    cases.case(("rows_of_given_keys_are_left_out", "read"), &[], Handles::without_keys).await;
    cases.case(("rows_of_given_routes_are_left_out", "read"), &[], Handles::without_routes).await;
    cases.case(("what_is_left_out_takes_no_place", "read"), &[], Handles::no_place).await;
    cases.case(("rows_to_be_left_alone_are_read", "contract 4"), &[], Handles::left_alone).await;
    cases.case(("ended_transactions_are_told_as_stated", "read"), &[], Handles::told).await;
    let needs = &[Ended, Concurrency];
    cases.case(("floor_is_not_above_what_may_still_commit", "O6"), needs, Handles::floor).await;
    cases.case(("floor_moves_without_removals", "remove"), &[Ended], Handles::floor_moves).await;
}

impl<O: Outbox, T: Transactions<O>> Handles<O, T> {
    async fn late(self) -> Outcome {
        let mut slow = self.begin().await?;
        self.put_in(&mut slow, &[row("low")]).await?;
        self.put_by(&self.b, &[row("high")]).await?;
        self.holds("while the first transaction is open", &["high"]).await?;
        self.commit(slow).await?;
        let mut all = ids(&self.all().await?);
        // Whether it has the lower number is the table's affair.
        all.sort_unstable();
        same("read after both have committed, sorted", &all, &["high", "low"])
    }

    async fn behind(self) -> Outcome {
        self.put(&rows("a", 4)).await?;
        let all = self.all_ids().await?;
        let read = async |seq: i64| self.read_from(&[RowId { lane: Lane(0), seq }]).await;
        same("read behind the second", &ids(&read(all[1].seq).await?.rows), &["a2", "a3"])?;
        same("read behind the last", &ids(&read(all[3].seq).await?.rows), &[] as &[&str; 0])?;
        same("read of no lane", &ids(&self.read_from(&[]).await?.rows), &[] as &[&str; 0])
    }

    async fn in_order(self) -> Outcome {
        self.has_lanes()?;
        let last = self.last();
        let spread = |(n, row)| NewRow { lane: if n % 2 == 0 { last } else { Lane(0) }, ..row };
        let put: Vec<NewRow> = rows("a", 6).into_iter().enumerate().map(spread).collect();
        self.put(&put).await?;
        self.holds("of all lanes", &["a1", "a3", "a5", "a0", "a2", "a4"]).await?;
        let all = self.all_ids().await?;
        let from = [all[1], RowId { lane: last, seq: all[3].seq }];
        same("read behind a number of each", &ids(&self.read_from(&from).await?.rows), &["a5", "a2", "a4"])?;
        same("read of one of them", &ids(&self.read_from(&from[1..]).await?.rows), &["a2", "a4"])
    }

    async fn read_from(&self, from: &[RowId]) -> Result<Batch, Stop> {
        self.read(&behind(from, 100, 1 << 20)).await
    }

    /// A lane with ten rows of four bytes, and the last one with three.
    async fn some(&self) -> Outcome {
        let mut put = rows("a", 10);
        if self.last() != Lane(0) {
            put.extend(rows("b", 3).into_iter().map(|row| NewRow { lane: self.last(), ..row }));
        }
        self.put(&put).await
    }

    /// Checks what a read with limits gives of lane 0, and whether it says that it was cut; the
    /// other lane is never cut.
    async fn cut_at(&self, (rows, bytes): (u32, u64), expected: usize, is_cut: Option<bool>) -> Outcome {
        let Batch { rows: came, cut, .. } = self.read_at_most(rows, bytes).await?;
        let what = format!("at most {rows} rows and {bytes} bytes");
        let of = |lane: Lane| came.iter().filter(|row| row.id.lane == lane).count();
        same(&format!("rows of a lane with ten, {what}"), &of(Lane(0)), &expected)?;
        if let Some(is_cut) = is_cut {
            same(&format!("whether it is cut, {what}"), &cut.contains(&Lane(0)), &is_cut)?;
        }
        if self.last() != Lane(0) {
            let of_last = (of(self.last()), cut.contains(&self.last()));
            same(
                &format!("rows of a lane with three, and whether it is cut, {what}"),
                &of_last,
                &(3, false),
            )?;
        }
        Ok(())
    }

    async fn limited_rows(self) -> Outcome {
        self.some().await?;
        self.cut_at((100, 1000), 10, Some(false)).await?;
        self.cut_at((5, 1000), 5, Some(true)).await?;
        // Whether there are more need not be known.
        self.cut_at((10, 1000), 10, None).await
    }

    async fn limited_bytes(self) -> Outcome {
        self.some().await?;
        self.cut_at((100, 41), 10, Some(false)).await?;
        self.cut_at((100, 28), 7, Some(true)).await?;
        self.cut_at((100, 27), 6, Some(true)).await
    }

    async fn oversized(self) -> Outcome {
        let sized = |id, bytes: usize| NewRow { body: vec![7; bytes].into(), ..row(id) };
        self.put(&[sized("empty", 0), sized("small", 10), sized("large", 2 << 20), sized("next", 10)])
            .await?;
        let (mut last_seq, mut read) = (0, Vec::new());
        for _ in 0..4 {
            let from = [RowId { lane: Lane(0), seq: last_seq }];
            let batch = self.read(&behind(&from, 10, 1000)).await?;
            read.push(ids(&batch.rows).join(" "));
            let Some(last) = batch.rows.last().filter(|_| !batch.cut.is_empty()) else { break };
            last_seq = last.id.seq;
        }
        same(
            "reads of at most 1,000 bytes, each behind the one before",
            &read,
            &["empty small", "large", "next"],
        )
    }

    /// What is read without these keys and routes.
    async fn without(
        &self,
        keys: &[String],
        routes: &[(String, String)],
        rows: u32,
    ) -> Result<Vec<String>, Stop> {
        let route = |(exchange, routing_key): &(String, String)| Route {
            exchange: exchange.clone(),
            routing_key: routing_key.clone(),
        };
        let routes: Vec<Route> = routes.iter().map(route).collect();
        let from = [RowId { lane: Lane(0), seq: 0 }];
        let (without_keys, without_routes) = (keys, routes.as_slice());
        let request = ReadRequest { without_keys, without_routes, ..behind(&from, rows, 1 << 20) };
        Ok(ids(&self.read(&request).await?.rows))
    }

    async fn without_rows(self) -> Outcome {
        self.put(&rows("a", 5)).await?;
        let all = self.all_ids().await?;
        let from = [RowId { lane: Lane(0), seq: 0 }];
        let without = async |without_rows: &[RowId], rows: u32| {
            let batch = self.read(&ReadRequest { without_rows, ..behind(&from, rows, 1 << 20) }).await?;
            Ok::<_, Stop>((ids(&batch.rows), batch.cut.len()))
        };
        let known = [all[0], all[1], all[3]];
        let left = |ids: &[&str], cut| (ids.iter().map(|&id| id.to_owned()).collect::<Vec<_>>(), cut);
        same("read without three of five", &without(&known, 2).await?.0, &left(&["a2", "a4"], 0).0)?;
        same("one row without three of five", &without(&known, 1).await?, &left(&["a2"], 1))?;
        same("read without all", &without(&all, 9).await?, &left(&[], 0))?;
        let others =
            (1..=i64::try_from(MANY).unwrap_or(i64::MAX)).map(|n| RowId { seq: all[4].seq + n, ..all[4] });
        let many: Vec<RowId> = others.chain(known).collect();
        same(&format!("read without {} rows", many.len()), &without(&many, 9).await?, &left(&["a2", "a4"], 0))
    }

    async fn without_keys(self) -> Outcome {
        let put = [row("none"), keyed("a", "k"), keyed("b", "K"), keyed("c", "k "), keyed("d", "ß'\"\\")];
        self.put(&put).await?;
        let without = async |keys: &[&str], expected: &[&str]| {
            let list: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
            same(&format!("read without the keys {keys:?}"), &self.without(&list, &[], 100).await?, &expected)
        };
        without(&[], &["none", "a", "b", "c", "d"]).await?;
        without(&["k"], &["none", "b", "c", "d"]).await?;
        without(&["K", "k ", "x"], &["none", "a", "d"]).await?;
        without(&["ß'\"\\"], &["none", "a", "b", "c"]).await?;
        let many: Vec<String> = (0..MANY).map(|n| format!("other{n}")).chain(["k".to_owned()]).collect();
        let read = self.without(&many, &[], 100).await?;
        same(&format!("read without {} keys", many.len()), &read, &["none", "b", "c", "d"])
    }

    async fn without_routes(self) -> Outcome {
        let routed = |id, exchange: &str, routing_key: &str| NewRow {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            ..row(id)
        };
        let with_key = NewRow { order_key: Some("k".to_owned()), ..routed("keyed", "e", "r") };
        let put = [routed("er", "e", "r"), with_key, routed("er ", "e", "r "), routed("q", "", "q")];
        self.put(&put).await?;
        let without = async |keys: &[&str], routes: &[(&str, &str)], expected: &[&str]| {
            let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
            let list: Vec<(String, String)> =
                routes.iter().map(|(exchange, key)| ((*exchange).to_owned(), (*key).to_owned())).collect();
            let read = self.without(&keys, &list, 100).await?;
            same(&format!("read without the routes {routes:?} and the keys {keys:?}"), &read, &expected)
        };
        // A row with a key has to be known: it may be the oldest of it.
        without(&[], &[("e", "r")], &["keyed", "er ", "q"]).await?;
        without(&["k"], &[("e", "r")], &["er ", "q"]).await?;
        without(&[], &[("", "q"), ("r", "e"), ("E", "r")], &["er", "keyed", "er "]).await?;
        let others = (0..MANY).map(|n| ("e".to_owned(), format!("r{n}")));
        let many: Vec<(String, String)> = others.chain([("e".to_owned(), "r".to_owned())]).collect();
        let read = self.without(&[], &many, 100).await?;
        same(&format!("read without {} routes", many.len()), &read, &["keyed", "er ", "q"])
    }

    async fn no_place(self) -> Outcome {
        let there = NewRow { routing_key: "there".to_owned(), ..row("there") };
        let put = [keyed("a", "k"), keyed("b", "k"), row("c"), there, row("d")];
        self.put(&put).await?;
        let (keys, routes) = (["k".to_owned()], [("orders".to_owned(), "placed".to_owned())]);
        let read = self.without(&keys, &[], 2).await?;
        same("two rows without a key of two others", &read, &["c", "there"])?;
        let read = self.without(&keys, &routes, 1).await?;
        same("one row without a key and a route of others", &read, &["there"])
    }

    async fn left_alone(self) -> Outcome {
        self.put(&rows("a", 2)).await?;
        let all = self.confirmed().await?;
        self.note(counted(&all[0], Next::Retry(LONG))).await?;
        self.holds("while one is to be left alone", &["a0", "a1"]).await
    }

    async fn told(self) -> Outcome {
        self.put(&[row("a")]).await?;
        let stated = self.capabilities.has(Ended);
        let read = self.read_at_most(10, 1000).await?.ended_below;
        let removed = self.b.remove(&self.confirmed().await?).await.map_err(error("remove"))?.transaction;
        let empty = self.b.remove(&[]).await.map_err(error("remove"))?.transaction;
        let told = (read.is_some(), removed.is_some(), empty.is_some());
        same("whether a read, a removal and an empty one tell", &told, &(stated, stated, stated))?;
        ensure!(
            removed <= empty && (removed < empty || !stated),
            "removals: expected transactions that grow; came {removed:?}, then {empty:?}"
        );
        Ok(())
    }

    /// The transaction of a removal that begins now.
    async fn mark(&self) -> Result<u64, Stop> {
        let removed = self.b.remove(&[]).await.map_err(error("remove"))?;
        removed.transaction.ok_or_else(|| failed("remove of nothing: expected its transaction; came none"))
    }

    async fn ended_below(&self) -> Result<u64, Stop> {
        let read = self.read_at_most(10, 1000).await?;
        read.ended_below.ok_or_else(|| failed("read: expected which transactions have ended; came nothing"))
    }

    /// A relay takes it that nothing up to a number that it has seen is still to come, once all
    /// transactions below one have ended that began after it saw that number.
    async fn floor(self) -> Outcome {
        for round in 0..3 {
            let mut slow = self.begin().await?;
            self.put_in(&mut slow, &[row(&format!("low{round}"))]).await?;
            self.put_by(&self.b, &[row(&format!("high{round}"))]).await?;
            let seen = self.all().await?.len();
            let mark = self.mark().await?;
            for _ in 0..2 {
                let ended = self.ended_below().await?;
                ensure!(
                    ended < mark,
                    "ended_below: expected less than {mark}, before which a transaction began that is open; came {ended}"
                );
                self.mark().await?;
            }
            if round == 1 {
                self.rollback(slow).await?;
            } else {
                self.commit(slow).await?;
            }
            self.passes(mark).await?;
            same("rows after that", &self.all().await?.len(), &(seen + usize::from(round != 1)))?;
        }
        Ok(())
    }

    async fn floor_moves(self) -> Outcome {
        for _ in 0..3 {
            let mark = self.mark().await?;
            self.passes(mark).await?;
        }
        Ok(())
    }

    /// Waits until all transactions below `mark` have ended.
    async fn passes(&self, mark: u64) -> Outcome {
        let deadline = Instant::now() + self.capabilities.patience();
        loop {
            let ended = self.ended_below().await?;
            if ended >= mark {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "ended_below: expected {mark}, sooner or later, as none of the suite's is open; came {ended}"
            );
            // Others may have transactions open, too.
            sleep(AGAIN.max(Duration::from_millis(5))).await;
        }
    }
}
