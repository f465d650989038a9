//! Rows that were given up, until an operator decides.

use super::{
    Transactions,
    handles::{Handles, counted, keyed, parked_ids, row, rows, same},
};
use crate::{
    outbox::{Confirmed, Failed, Lane, NewRow, Next, Outbox, ParkedKey, RowId, Select},
    testing::conformance::{
        fixture::{Outcome, Stop, ensure, error},
        runner::Cases,
    },
};

pub(super) async fn all<O: Outbox, T: Transactions<O>>(cases: &mut Cases<'_, Handles<O, T>>) {
    cases.case(("parked_row_leaves_its_lane", "fail"), &[], Handles::parks).await;
    cases.case(("follower_is_parked_only_behind_a_parked_one", "fail"), &[], Handles::followers).await;
    cases.case(("parked_keys_tell_the_first", "parked_keys"), &[], Handles::keys).await;
    cases.case(("parked_rows_are_listed_in_pages", "list_parked"), &[], Handles::pages).await;
    cases.case(("parked_rows_are_listed_as_selected", "list_parked"), &[], Handles::selected).await;
    cases.case(("unparked_rows_have_their_numbers_and_no_attempts", "unpark"), &[], Handles::unparks).await;
    cases.case(("unpark_takes_only_what_is_selected", "unpark"), &[], Handles::unparks_some).await;
    cases.case(("discard_deletes_only_parked_rows", "discard"), &[], Handles::discards).await;
}

fn key(key: &str) -> Select {
    Select::Key(key.to_owned())
}

impl<O: Outbox, T: Transactions<O>> Handles<O, T> {
    async fn parks(self) -> Outcome {
        let put = NewRow { body: "a body".into(), properties: Some("{}".into()), ..keyed("a", "k") };
        self.put(&[put.clone(), row("b")]).await?;
        let all = self.confirmed().await?;
        let why = "404 no exchange 'é'";
        self.note(Failed { error: why.to_owned(), ..counted(&all[0], Next::Park) }).await?;
        self.holds("after one was parked", &["b"]).await?;
        let parked = self.parked().await?;
        same("parked rows", &parked_ids(&parked), &["a"])?;
        let found = &parked[0];
        same("its number, and the lane that it comes from", &found.row.id, &all[0].row)?;
        same("its attempts", &found.row.attempts, &1)?;
        same("its error", &found.error.as_deref(), &Some(why))?;
        let kept = (&found.row.order_key, &found.row.properties, &found.row.body);
        same("its key, properties and body", &kept, &(&put.order_key, &put.properties, &put.body))?;
        ensure!(found.parked.as_secs() < 60, "parked: expected a moment ago; came {:?}", found.parked);
        Ok(())
    }

    /// Fails a row as one that only follows; how many are parked then.
    async fn follow(&self, row: &Confirmed) -> Result<usize, Stop> {
        self.note(Failed { counted: false, ..counted(row, Next::Park) }).await?;
        Ok(self.parked().await?.len())
    }

    async fn followers(self) -> Outcome {
        let put = [keyed("a", "k"), keyed("other", "K"), keyed("b", "k"), keyed("c", "k"), row("d")];
        self.put(&put).await?;
        let all = self.confirmed().await?;
        same("parked rows, with none before it", &self.follow(&all[2]).await?, &0)?;
        self.park(&all[1..2]).await?;
        same("parked rows, with one of another key before it", &self.follow(&all[2]).await?, &1)?;
        self.park(&all[3..4]).await?;
        same("parked rows, with one of its key behind it", &self.follow(&all[2]).await?, &2)?;
        self.park(&all[..1]).await?;
        same("parked rows, with one of its key before it", &self.follow(&all[2]).await?, &4)?;
        let parked = self.parked().await?;
        let attempts: Vec<u32> = parked.iter().map(|parked| parked.row.attempts).collect();
        same("parked rows", &parked_ids(&parked), &["a", "other", "b", "c"])?;
        same("their attempts, of which a follower has none", &attempts, &[1, 1, 0, 1])
    }

    async fn parked_keys_of(&self, lanes: &[Lane], expected: &[(&str, RowId)]) -> Outcome {
        let mut keys = self.b.parked_keys(lanes).await.map_err(error("parked_keys"))?;
        keys.sort_unstable();
        let key = |(key, first): &(&str, RowId)| ParkedKey { key: (*key).to_owned(), first: first.seq };
        let expected: Vec<ParkedKey> = expected.iter().map(key).collect();
        same(&format!("parked keys of {lanes:?}"), &keys, &expected)
    }

    async fn keys(self) -> Outcome {
        let last = self.last();
        let other = NewRow { lane: last, ..keyed("b", "K ") };
        self.put(&[keyed("a", "k"), other, keyed("c", "k"), row("d"), keyed("e", "free")]).await?;
        let all = self.confirmed().await?;
        let named =
            |id: &str| all[all.iter().position(|row| row.message_id.as_str() == id).unwrap_or(0)].clone();
        let of = |id: &str| named(id).row;
        self.park(&["c", "a", "b", "d"].map(named)).await?;
        self.parked_keys_of(&[Lane(0), last], &[("K ", of("b")), ("k", of("a"))]).await?;
        self.parked_keys_of(&[], &[]).await?;
        if last != Lane(0) {
            self.parked_keys_of(&[Lane(0)], &[("k", of("a"))]).await?;
            self.parked_keys_of(&[last], &[("K ", of("b"))]).await?;
        }
        // The first one goes on.
        self.b.unpark(&Select::Seq(of("a").seq)).await.map_err(error("unpark"))?;
        self.b.discard(&key("K ")).await.map_err(error("discard"))?;
        self.parked_keys_of(&[Lane(0), last], &[("k", of("c"))]).await
    }

    /// Five rows, of which the first four are parked.
    async fn four(&self) -> Result<Vec<Confirmed>, Stop> {
        let put = [keyed("a", "k"), keyed("b", "K"), keyed("c", "k"), row("d"), keyed("e", "k")];
        self.put(&put).await?;
        let all = self.confirmed().await?;
        // Not in the order of their numbers.
        self.park(&[3, 0, 2, 1].map(|n: usize| all[n].clone())).await?;
        Ok(all)
    }

    async fn lists(&self, select: &Select, behind: i64, limit: u32, expected: &[&str]) -> Outcome {
        let listed = self.b.list_parked(select, behind, limit).await.map_err(error("list_parked"))?;
        let what = format!("parked rows of {select:?}, behind {behind}, at most {limit}");
        same(&what, &parked_ids(&listed), &expected)
    }

    async fn pages(self) -> Outcome {
        let all = self.four().await?;
        self.lists(&Select::All, 0, 10, &["a", "b", "c", "d"]).await?;
        self.lists(&Select::All, 0, 3, &["a", "b", "c"]).await?;
        self.lists(&Select::All, all[1].row.seq, 1, &["c"]).await?;
        self.lists(&Select::All, all[2].row.seq, 10, &["d"]).await?;
        self.lists(&Select::All, all[3].row.seq, 10, &[]).await
    }

    async fn selected(self) -> Outcome {
        let all = self.four().await?;
        self.lists(&key("k"), 0, 10, &["a", "c"]).await?;
        self.lists(&key("k"), all[0].row.seq, 10, &["c"]).await?;
        self.lists(&key("K"), 0, 10, &["b"]).await?;
        self.lists(&key("k "), 0, 10, &[]).await?;
        self.lists(&Select::Seq(all[3].row.seq), 0, 10, &["d"]).await?;
        self.lists(&Select::Seq(all[4].row.seq), 0, 10, &[]).await
    }

    async fn unparks(self) -> Outcome {
        self.put(&rows("a", 4)).await?;
        let all = self.confirmed().await?;
        self.park(&[all[0].clone(), all[2].clone()]).await?;
        for expected in [2, 0] {
            let back = self.b.unpark(&Select::All).await.map_err(error("unpark"))?;
            same("rows that were put back", &back, &expected)?;
        }
        let now = self.all().await?;
        same("all rows", &now.iter().map(Confirmed::from).collect::<Vec<_>>(), &all)?;
        let fresh: Vec<_> = now.iter().map(|row| (row.attempts, row.retry_in.is_zero())).collect();
        same("their attempts, and whether they may be sent", &fresh, &[(0, true); 4])?;
        same("parked rows", &self.parked().await?.len(), &0)?;
        // It is as any other.
        self.note(counted(&all[0], Next::Park)).await?;
        same("parked rows, after one was parked again", &parked_ids(&self.parked().await?), &["a0"])
    }

    async fn unparks_some(self) -> Outcome {
        let all = self.four().await?;
        for (select, expected) in
            [(Select::Seq(all[4].row.seq), 0), (key("K"), 1), (Select::Seq(all[2].row.seq), 1)]
        {
            let back = self.b.unpark(&select).await.map_err(error("unpark"))?;
            same(&format!("rows of {select:?} that were put back"), &back, &expected)?;
        }
        same("parked rows", &parked_ids(&self.parked().await?), &["a", "d"])?;
        self.holds("after that", &["b", "c", "e"]).await
    }

    async fn discards(self) -> Outcome {
        let all = self.four().await?;
        for (select, expected) in
            [(Select::Seq(all[4].row.seq), 0), (key("k"), 2), (Select::Seq(all[3].row.seq), 1)]
        {
            let gone = self.b.discard(&select).await.map_err(error("discard"))?;
            same(&format!("rows of {select:?} that were discarded"), &gone, &expected)?;
        }
        same("parked rows", &parked_ids(&self.parked().await?), &["b"])?;
        let gone = self.b.discard(&Select::All).await.map_err(error("discard"))?;
        same("rows that were discarded", &gone, &1)?;
        same("parked rows", &self.parked().await?.len(), &0)?;
        self.holds("after that", &["e"]).await
    }
}
