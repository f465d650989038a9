//! Who is alive, and who has which lane: by the clock of the database, and by nobody else's.

use std::time::Duration;

use uuid::Uuid;

use super::{
    LONGEST, SqlDatabase, SqlOutbox,
    rows::{Cells, lane, wrong},
};
use crate::{
    error::bounded_to,
    idempotency::StoreError,
    outbox::{Ownership, RelayId, Term},
    store::sql::{dialect::Value, error::failed, options::micros},
};

/// How much of a relay's name is kept.
const NAME_BYTES: usize = 255;

/// The beginning of a lease that ends now.
fn lease_ago(lease: Duration) -> Value<'static> {
    Value::Integer(-micros(lease.min(LONGEST)))
}

impl<DB: SqlDatabase> SqlOutbox<DB> {
    pub(super) async fn register_relay(&self, relay: RelayId, name: &str) -> Result<(), StoreError> {
        let (id, name) = (relay.0.to_string(), bounded_to(name, NAME_BYTES));
        self.changed(&self.statements.register, &[Value::Text(&id), Value::Text(&name)]).await?;
        self.changed(&self.statements.forget, &[]).await?;
        Ok(())
    }

    pub(super) async fn beat_once(&self, relay: RelayId, lease: Duration) -> Result<bool, StoreError> {
        let id = relay.0.to_string();
        Ok(self.changed(&self.statements.beat, &[Value::Text(&id), lease_ago(lease)]).await? > 0)
    }

    pub(super) async fn owners(&self, lease: Duration) -> Result<Ownership, StoreError> {
        let found = self.selected(&self.statements.ownership, &[lease_ago(lease)]).await?;
        let mut ownership = Ownership::default();
        for cells in &found {
            note(cells, &mut ownership).map_err(failed::<DB>)?;
        }
        ownership.relays.sort_unstable();
        ownership.lanes.sort_unstable_by_key(|(term, _)| term.lane);
        Ok(ownership)
    }

    /// A relay whose lease has run out is taken out of the table before anything is taken from it:
    /// its next beat is refused then, and one that is under way makes the removal wait. So no beat
    /// is answered with yes while another relay takes the lanes.
    pub(super) async fn take_lanes(
        &self,
        relay: RelayId,
        lanes: &[Term],
        lease: Duration,
    ) -> Result<Vec<Term>, StoreError> {
        let id = relay.0.to_string();
        let id = Value::Text(&id);
        self.changed(&self.statements.expire, &[lease_ago(lease), id]).await?;
        let mut taken = Vec::new();
        for &Term { lane, term } in lanes {
            let values = [id, Value::Integer(lane.0.into()), Value::Integer(term), id];
            if self.changed(&self.statements.take, &values).await? > 0 {
                taken.push(Term { lane, term: term + 1 });
            }
        }
        Ok(taken)
    }

    pub(super) async fn release_lanes(&self, lanes: &[Term]) -> Result<(), StoreError> {
        for &Term { lane, term } in lanes {
            let values = [Value::Integer(lane.0.into()), Value::Integer(term)];
            self.changed(&self.statements.release, &values).await?;
        }
        Ok(())
    }

    pub(super) async fn forget_relay(&self, relay: RelayId) -> Result<(), StoreError> {
        let id = relay.0.to_string();
        // Its lanes are free with the first; the second is for people who look at the table.
        self.changed(&self.statements.leave, &[Value::Text(&id)]).await?;
        self.changed(&self.statements.disown, &[Value::Text(&id)]).await?;
        Ok(())
    }
}

/// A row of a relay has lane -1.
fn note(cells: &impl Cells, ownership: &mut Ownership) -> Result<(), sqlx::Error> {
    let relay = cells.text(0)?.map(|id| id.parse::<Uuid>().map(RelayId)).transpose();
    let relay = relay.map_err(|error| sqlx::Error::Decode(error.into()))?;
    match cells.some(1)? {
        -1 => ownership.relays.push(relay.ok_or_else(|| wrong("a relay without a name"))?),
        number => ownership.lanes.push((Term { lane: lane(number)?, term: cells.some(2)? }, relay)),
    }
    Ok(())
}
