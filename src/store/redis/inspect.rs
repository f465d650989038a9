//! Looking into the store.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, SystemTime},
};

use redis::{Value, cmd, from_redis_value};

use super::{
    RedisStore,
    error::{Failure, Particular},
    script::{Answer, FIND, FORGET},
};
use crate::{
    idempotency::{Inspect, Record, Scope, StoreError},
    message::MessageId,
    store::{ServerFacts, log_forgotten},
};

/// How many keys a server looks at in one go.
const PAGE: u32 = 1000;

impl Inspect for RedisStore {
    async fn find(&self, scope: &Scope, message_id: &MessageId) -> Result<Option<Record>, StoreError> {
        match self.ask(FIND.on(self.key(scope, message_id))).await? {
            Answer::Known(record) => Ok(Some(record)),
            Answer::Not => Ok(None),
            _ => Err(Failure::unexpected().into()),
        }
    }

    /// Walks over all keys of all primaries, whatever they are; while a cluster moves slots it may
    /// miss some.
    async fn count(&self, scope: &Scope) -> Result<u64, StoreError> {
        // A key that is written during the walk may be seen twice.
        let mut completed = HashSet::new();
        for slot in self.a_slot_of_each().await? {
            let mut cursor = "0".to_owned();
            loop {
                let mut scan = cmd("SCAN");
                scan.arg(&cursor).arg("MATCH").arg(self.pattern(scope)).arg("COUNT").arg(PAGE);
                let page = self.link()?.to_slot(&scan, slot, self.options.limit()).await?;
                let (next, keys): (String, Vec<Vec<u8>>) =
                    from_redis_value(page).map_err(|_| Failure::unexpected())?;
                completed.extend(self.completed(keys).await?);
                if next == "0" {
                    break;
                }
                cursor = next;
            }
        }
        Ok(completed.len() as u64)
    }

    async fn forget(&self, scope: &Scope, message_id: &MessageId) -> Result<bool, StoreError> {
        let call = FORGET.on(self.key(scope, message_id)).millis(self.options.retention);
        let forgotten = match self.ask(call).await? {
            Answer::Done => true,
            Answer::Not => false,
            _ => return Err(Failure::unexpected().into()),
        };
        if forgotten {
            log_forgotten(scope, message_id);
        }
        Ok(forgotten)
    }
}

impl RedisStore {
    /// What the server says of itself; of a cluster one of the primaries.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    pub async fn server(&self) -> Result<ServerFacts, StoreError> {
        let unexpected = |_| Failure::unexpected();
        let (link, limit) = (self.link()?, self.options.limit());
        let info = link.to_slot(cmd("INFO").arg("server"), 0, limit).await?;
        let info: String = from_redis_value(info).map_err(unexpected)?;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or_default();
        let (seconds, micros): (u64, u32) =
            from_redis_value(link.to_slot(&cmd("TIME"), 0, limit).await?).map_err(unexpected)?;
        let clock = Duration::from_secs(seconds) + Duration::from_micros(micros.into());
        Ok(ServerFacts { version: version.trim().to_owned(), clock: SystemTime::UNIX_EPOCH + clock })
    }

    /// Those of the keys whose identity was completed.
    async fn completed(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, StoreError> {
        let (link, limit) = (self.link()?, self.options.limit());
        let state = |key: &Vec<u8>| cmd("GETRANGE").arg(key).arg(16).arg(16).take();
        let (mut completed, mut hashes) = (Vec::new(), Vec::new());
        let states = link.commands(&keys.iter().map(state).collect::<Vec<_>>(), limit).await;
        for (key, state) in keys.into_iter().zip(states) {
            match state {
                Ok(Value::BulkString(state)) if state == b"c" => completed.push(key),
                Ok(_) => {}
                Err(failure) if failure.particular == Some(Particular::WrongType) => hashes.push(key),
                Err(failure) => return Err(failure.into()),
            }
        }
        // Of before 0.1.0.
        let is_completed = |key: &Vec<u8>| cmd("HEXISTS").arg(key).arg("a").take();
        let answers = link.commands(&hashes.iter().map(is_completed).collect::<Vec<_>>(), limit).await;
        for (key, answer) in hashes.into_iter().zip(answers) {
            if from_redis_value(answer?).map_err(|_| Failure::unexpected())? {
                completed.push(key);
            }
        }
        Ok(completed)
    }

    /// For each primary one slot that it has.
    async fn a_slot_of_each(&self) -> Result<Vec<u16>, StoreError> {
        if !self.link.is_cluster() {
            return Ok(vec![0]);
        }
        let slots = self.link()?.to_slot(cmd("CLUSTER").arg("SLOTS"), 0, self.options.limit()).await?;
        let ranges: Vec<Vec<Value>> = from_redis_value(slots).map_err(|_| Failure::unexpected())?;
        let mut primaries = BTreeMap::new();
        for range in ranges {
            let mut range = range.into_iter();
            let (Some(first), Some(_last), Some(primary)) = (range.next(), range.next(), range.next()) else {
                return Err(Failure::unexpected().into());
            };
            let first: u16 = from_redis_value(first).map_err(|_| Failure::unexpected())?;
            // Host, port, node ID and more: the same for all ranges of a node.
            primaries.entry(format!("{primary:?}")).or_insert(first);
        }
        Ok(primaries.into_values().collect())
    }

    /// Matches the keys of a scope, for `SCAN`.
    fn pattern(&self, scope: &Scope) -> String {
        let mut pattern = String::new();
        for c in self.start_of_key(scope).chars() {
            if matches!(c, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        pattern.push('*');
        pattern
    }
}
