//! Rows are put in, and removed.

use std::collections::BTreeMap;

use super::{
    Transactions,
    handles::{Handles, ids, keyed, row, rows, same, strangers},
};
use crate::{
    outbox::{Confirmed, Lane, NewRow, Outbox, Row, RowId},
    testing::conformance::{
        fixture::{Outcome, ensure, error},
        runner::Cases,
    },
};

/// More than go into one statement.
const MANY: usize = 2500;

pub(super) async fn all<O: Outbox, T: Transactions<O>>(cases: &mut Cases<'_, Handles<O, T>>) {
    cases.case(("what_is_not_committed_is_never_read", "contract 1"), &[], Handles::undone).await;
    cases.case(("transaction_is_read_whole_and_in_order", "contract 1"), &[], Handles::whole).await;
    cases.case(("every_byte_comes_back", "contract 3"), &[], Handles::bytes).await;
    cases.case(("numbers_grow", "contract 2"), &[], Handles::numbers).await;
    cases.case(("removed_rows_are_gone", "contract 7"), &[], Handles::removed).await;
    cases.case(("row_is_removed_in_its_lane_only", "contract 7"), &[], Handles::removed_in_lane).await;
    cases.case(("row_of_another_message_is_not_removed", "contract 7"), &[], Handles::removed_by_id).await;
    cases.case(("remove_needs_no_term", "contract 7"), &[], Handles::removed_by_others).await;
}

/// All sorts of texts and bodies.
fn unusual() -> Vec<NewRow> {
    let all_bytes: Vec<u8> = (0..=255).collect();
    let long = |part: &str| part.chars().cycle().take(255).collect::<String>();
    vec![
        row("plain"),
        NewRow {
            exchange: long("Ex "),
            routing_key: long("a.B "),
            order_key: Some(long("k")),
            body: all_bytes.repeat(4 << 10).into(),
            ..row(&long("i"))
        },
        NewRow {
            order_key: Some("Straße 🦀 ".to_owned()),
            routing_key: "E\u{301}É".to_owned(),
            properties: Some("{\"h\":\"\\u0000'\\\"\u{1f980} \"}  ".to_owned()),
            body: "\0a\0".into(),
            ..row("Case ")
        },
        NewRow {
            exchange: String::new(),
            routing_key: String::new(),
            properties: Some(String::new()),
            body: "".into(),
            ..keyed("case", "x")
        },
        NewRow { routing_key: "O'Reilly; -- %_\\".to_owned(), ..keyed("case ", " x") },
    ]
}

fn check_bytes(put: &NewRow, read: &Row) -> Outcome {
    let what = |column: &str| format!("{column} of {:?}", put.message_id.as_str());
    same(&what("lane"), &read.id.lane, &put.lane)?;
    same(&what("message ID"), &read.message_id, &put.message_id)?;
    same(&what("exchange"), &read.exchange, &put.exchange)?;
    same(&what("routing key"), &read.routing_key, &put.routing_key)?;
    same(&what("order key"), &read.order_key, &put.order_key)?;
    same(&what("properties"), &read.properties, &put.properties)?;
    let (expected, came) = (put.body.len(), read.body.len());
    ensure!(read.body == put.body, "{}: expected its {expected} bytes; came {came}, or others", what("body"));
    let fresh = (read.attempts, read.retry_in.is_zero());
    same(&what("attempts, and whether it may be sent,"), &fresh, &(0, true))
}

impl<O: Outbox, T: Transactions<O>> Handles<O, T> {
    async fn undone(self) -> Outcome {
        let mut transaction = self.begin().await?;
        self.put_in(&mut transaction, &rows("undone", 3)).await?;
        if self.is_concurrent() {
            // Nor does the read wait for it.
            self.holds("before the commit", &[]).await?;
        }
        self.rollback(transaction).await?;
        self.holds("after a rollback", &[]).await?;
        self.put(&[row("done")]).await?;
        self.holds("after a commit", &["done"]).await?;
        self.put(&[]).await?;
        let mut transaction = self.begin().await?;
        self.put_in(&mut transaction, &[row("dropped")]).await?;
        drop(transaction);
        self.holds("after a transaction was dropped", &["done"]).await
    }

    async fn whole(self) -> Outcome {
        let lanes = usize::from(self.a.lanes().max(1));
        let mut put = rows("m", MANY);
        for (n, row) in put.iter_mut().enumerate() {
            row.lane = Lane(u16::try_from(n % lanes).unwrap_or_default());
        }
        let (first, rest) = put.split_at(MANY / 10);
        let mut transaction = self.begin().await?;
        self.put_in(&mut transaction, first).await?;
        self.put_in(&mut transaction, rest).await?;
        self.commit(transaction).await?;
        let mut expected: BTreeMap<Lane, Vec<String>> = BTreeMap::new();
        for row in &put {
            expected.entry(row.lane).or_default().push(row.message_id.to_string());
        }
        let mut came: BTreeMap<Lane, Vec<String>> = BTreeMap::new();
        for row in self.all().await? {
            came.entry(row.id.lane).or_default().push(row.message_id.to_string());
        }
        for (lane, expected) in expected {
            let came = came.remove(&lane).unwrap_or_default();
            let (all, some) = (expected.len(), came.len());
            ensure!(
                came == expected,
                "{lane:?}: expected its {all} rows in order; came {some}, or in another"
            );
        }
        Ok(())
    }

    async fn bytes(self) -> Outcome {
        let put = unusual();
        self.put(&put).await?;
        let read = self.all().await?;
        let expected: Vec<&str> = put.iter().map(|row| row.message_id.as_str()).collect();
        same("the message IDs", &ids(&read), &expected)?;
        put.iter().zip(&read).try_for_each(|(put, read)| check_bytes(put, read))
    }

    async fn numbers(self) -> Outcome {
        let mut last = 0;
        for round in 0..2 {
            for n in 0..6 {
                let id = format!("m{round}.{n}");
                self.put_by(if n % 2 == 0 { &self.a } else { &self.b }, &[row(&id)]).await?;
                let all = self.all().await?;
                let seq = all.iter().find(|row| row.message_id.as_str() == id).map(|row| row.id.seq);
                let grows = seq.is_some_and(|seq| seq > last);
                ensure!(
                    grows,
                    "number of {id}: expected one above {last}, of an earlier commit; came {seq:?}"
                );
                last = seq.unwrap_or(last);
            }
            // Nor are they used again.
            let all = self.confirmed().await?;
            self.b.remove(&all).await.map_err(error("remove"))?;
        }
        Ok(())
    }

    async fn removed(self) -> Outcome {
        self.put(&rows("a", 5)).await?;
        let all = self.confirmed().await?;
        let unknown = Confirmed { row: RowId { lane: Lane(0), seq: i64::MAX }, ..all[4].clone() };
        let gone = [all[4].clone(), unknown, all[1].clone()];
        for (rows, expected) in [(&gone[..], 2), (&gone[..], 0), (&gone[1..2], 0), (&[], 0)] {
            let removed = self.b.remove(rows).await.map_err(error("remove"))?;
            same(&format!("rows that were there, of {rows:?}"), &removed.rows, &expected)?;
        }
        self.holds("after two were removed", &["a0", "a2", "a3"]).await?;
        let left = self.all_ids().await?;
        same("their numbers", &left, &[all[0].row, all[2].row, all[3].row])
    }

    async fn removed_in_lane(self) -> Outcome {
        self.has_lanes()?;
        self.put(&rows("a", 2)).await?;
        let mut wrong = self.confirmed().await?;
        for confirmed in &mut wrong {
            confirmed.row.lane = self.last();
        }
        let removed = self.b.remove(&wrong).await.map_err(error("remove"))?;
        same("rows with these numbers in another lane", &removed.rows, &0)?;
        self.holds("after that", &["a0", "a1"]).await
    }

    async fn removed_by_id(self) -> Outcome {
        let long = "\u{e9}".repeat(127) + "x";
        self.put(&[row("Case "), row("\u{df}'\"\\ E\u{301}\u{1f980}"), row(&long), row("plain")]).await?;
        let all = self.confirmed().await?;
        for others in strangers(&all) {
            let removed = self.b.remove(&others).await.map_err(error("remove"))?;
            same(&format!("rows that hold other messages, {others:?}"), &removed.rows, &0)?;
        }
        same("what is there after that", &self.confirmed().await?, &all)?;
        let removed = self.b.remove(&all).await.map_err(error("remove"))?;
        same("rows that hold these messages", &removed.rows, &(all.len() as u64))
    }

    async fn removed_by_others(self) -> Outcome {
        self.put(&rows("a", 2)).await?;
        let all = self.confirmed().await?;
        let (relay, _) = self.take(Lane(0)).await?;
        let removed = self.b.remove(&all[..1]).await.map_err(error("remove"))?;
        same("rows removed of another relay's lane", &removed.rows, &1)?;
        self.leave(relay).await?;
        let removed = self.b.remove(&all[1..]).await.map_err(error("remove"))?;
        same("rows removed of nobody's lane", &removed.rows, &1)?;
        self.holds("after that", &[]).await
    }
}
