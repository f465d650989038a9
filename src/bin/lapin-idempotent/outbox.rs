//! Messages that wait in an outbox, and those that were parked there.

use std::{collections::BTreeMap, time::Duration};

use lapin_idempotent::{
    IdempotentPublisher, Relay,
    outbox::{Lane, Outbox as Contract, ParkedRow, ReadRequest, RelayMonitor, Row, RowId, Select},
};
use serde_json::{Value, from_str};

use crate::{
    ask::{Done, Failure, may},
    options::{Body, Outbox, Rows},
    print::{Printer, Record, body, escaped},
    progress::Progress,
    servers::{Servers, with_outbox},
    signals::interrupted,
    watch::{self, Look},
};

/// Rows of a page.
const PAGE: u32 = 500;
/// Bytes of bodies of a page of a lane.
const PAGE_BYTES: u64 = 8 << 20;
/// Parked rows of which the errors are counted.
const COUNTED: usize = 10_000;
/// As many different errors as are shown.
const ERRORS: usize = 20;

pub(crate) async fn run(command: &Outbox, servers: &Servers, printer: Printer) -> Result<Done, Failure> {
    let outbox = servers.outbox()?;
    with_outbox!(outbox, outbox => on(command, outbox, servers, printer).await)
}

async fn on<O: Contract + Clone>(
    command: &Outbox,
    outbox: O,
    servers: &Servers,
    printer: Printer,
) -> Result<Done, Failure> {
    match command {
        Outbox::Status { watch: true, every } => watch::run(&outbox, *every, servers, printer).await?,
        Outbox::Status { .. } => status(&outbox, printer).await?,
        Outbox::List { parked, key, limit } => {
            let rows = if *parked {
                let select = key.clone().map_or(Select::All, Select::Key);
                let parked = parked_rows(&outbox, &select, *limit).await?;
                parked.iter().map(parked_record).collect()
            } else {
                waiting(&outbox, key.as_deref(), *limit).await?
            };
            printer.list(&rows)?;
            if rows.len() == *limit {
                printer.note("there may be more: --limit")?;
            }
        }
        Outbox::Show { seq, body } => return show(&outbox, *seq, body, printer).await,
        Outbox::Retry { rows, consent } => {
            let selects = selects(rows);
            if !may(consent, &format!("put back {}", named(rows)))? {
                return Ok(Done::Well);
            }
            let _progress = Progress::new(printer, "putting back", None);
            let mut put_back = 0;
            for select in &selects {
                put_back += outbox.unpark(select).await?;
            }
            outbox.wake();
            printer.one(&vec![("put_back", put_back.into())])?;
        }
        Outbox::Discard { rows, because, consent } => {
            let selects = selects(rows);
            if !may(consent, &format!("delete, unpublished and for good, {}", named(rows)))? {
                return Ok(Done::Well);
            }
            let _progress = Progress::new(printer, "deleting", None);
            let mut discarded = 0;
            for select in &selects {
                discarded += outbox.discard(select).await?;
            }
            tracing::warn!(because, discarded, "asked for on the command line");
            printer.one(&vec![("discarded", discarded.into()), ("because", because.as_str().into())])?;
        }
        Outbox::Relay { name, until_empty } => {
            relay(outbox, servers, name.as_ref(), *until_empty, printer).await?;
        }
    }
    Ok(Done::Well)
}

async fn status<O: Contract>(outbox: &O, printer: Printer) -> Result<(), Failure> {
    outbox.check().await?;
    let mut record = Look::take(outbox).await?.record();
    let mut errors: BTreeMap<String, u64> = BTreeMap::new();
    for row in parked_rows(outbox, &Select::All, COUNTED).await? {
        *errors.entry(escaped(row.error.as_deref().unwrap_or("-"), 200)).or_default() += 1;
    }
    let mut errors: Vec<(String, u64)> = errors.into_iter().collect();
    errors.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    errors.truncate(ERRORS);
    let errors = errors.into_iter().map(|(error, count)| (error, Value::from(count)));
    record.push(("parked_by_error", errors.collect()));
    printer.one(&record)?;
    Ok(())
}

/// Up to so many parked rows.
async fn parked_rows<O: Contract>(
    outbox: &O,
    select: &Select,
    most: usize,
) -> Result<Vec<ParkedRow>, Failure> {
    let (mut rows, mut behind) = (Vec::new(), 0);
    while rows.len() < most {
        let page = u32::try_from(most - rows.len()).unwrap_or(PAGE).min(PAGE);
        let found = outbox.list_parked(select, behind, page).await?;
        let Some(last) = found.last() else { break };
        behind = last.row.id.seq;
        rows.extend(found);
    }
    Ok(rows)
}

/// The oldest rows that wait, up to so many, by the way that a relay reads them. Lanes have the
/// numbers among them in no order: each may hold all of the oldest.
async fn waiting<O: Contract>(outbox: &O, key: Option<&str>, most: usize) -> Result<Vec<Record>, Failure> {
    let mut oldest: BTreeMap<i64, Record> = BTreeMap::new();
    for lane in 0..outbox.lanes() {
        let mut from = RowId { lane: Lane(lane), seq: 0 };
        loop {
            let rows = u32::try_from(most).unwrap_or(PAGE).min(PAGE);
            let page = read(outbox, from, rows).await?;
            let Some(last) = page.last() else { break };
            from = last.id;
            let wanted =
                page.iter().filter(|row| key.is_none_or(|key| row.order_key.as_deref() == Some(key)));
            oldest.extend(wanted.map(|row| (row.id.seq, record(row))));
            while oldest.len() > most {
                oldest.pop_last();
            }
            // What follows in this lane is younger than all of them.
            if oldest.len() == most
                && oldest.last_key_value().is_none_or(|(youngest, _)| *youngest <= from.seq)
            {
                break;
            }
        }
    }
    Ok(oldest.into_values().collect())
}

async fn read<O: Contract>(outbox: &O, from: RowId, rows: u32) -> Result<Vec<Row>, Failure> {
    let request = ReadRequest {
        from: &[from],
        without_rows: &[],
        without_keys: &[],
        without_routes: &[],
        rows,
        bytes: PAGE_BYTES,
    };
    Ok(outbox.read(&request).await?.rows)
}

fn record(row: &Row) -> Record {
    vec![
        ("seq", row.id.seq.into()),
        ("age_seconds", row.age.as_secs().into()),
        ("attempts", row.attempts.into()),
        ("body_bytes", row.body.len().into()),
        ("id", row.message_id.as_str().into()),
        ("exchange", row.exchange.as_str().into()),
        ("routing_key", row.routing_key.as_str().into()),
        ("key", row.order_key.clone().into()),
    ]
}

fn parked_record(parked: &ParkedRow) -> Record {
    let mut record = record(&parked.row);
    record.insert(1, ("parked_seconds", parked.parked.as_secs().into()));
    record.push(("error", parked.error.clone().into()));
    record
}

async fn show<O: Contract>(outbox: &O, seq: i64, shown: &Body, printer: Printer) -> Result<Done, Failure> {
    let parked = outbox.list_parked(&Select::Seq(seq), seq.saturating_sub(1), 1).await?;
    let found = match parked.into_iter().next() {
        Some(parked) => Some((parked_record(&parked), parked.row)),
        None => waiting_row(outbox, seq).await?.map(|row| (record(&row), row)),
    };
    let Some((mut record, row)) = found else {
        return Err(Failure::Failed(format!(
            "no message {seq} is in the outbox; it may have been published"
        )));
    };
    record.insert(1, ("lane", row.id.lane.0.into()));
    record.push(("retry_in_seconds", row.retry_in.as_secs().into()));
    let properties = row.properties.as_deref().map(|json| from_str(json).unwrap_or_else(|_| json.into()));
    record.push(("properties", properties.unwrap_or(Value::Null)));
    if shown.body {
        record.extend(body(&row.body, shown.bytes));
    }
    printer.one(&record)?;
    Ok(Done::Well)
}

async fn waiting_row<O: Contract>(outbox: &O, seq: i64) -> Result<Option<Row>, Failure> {
    for lane in 0..outbox.lanes() {
        let from = RowId { lane: Lane(lane), seq: seq.saturating_sub(1) };
        if let Some(row) = read(outbox, from, 1).await?.into_iter().find(|row| row.id.seq == seq) {
            return Ok(Some(row));
        }
    }
    Ok(None)
}

fn selects(rows: &Rows) -> Vec<Select> {
    match &rows.key {
        Some(key) => vec![Select::Key(key.clone())],
        None if rows.all => vec![Select::All],
        None => rows.seqs.iter().map(|seq| Select::Seq(*seq)).collect(),
    }
}

fn named(rows: &Rows) -> String {
    match &rows.key {
        Some(key) => format!("all parked messages with the order key {key:?}"),
        None if rows.all => "all parked messages".to_owned(),
        None => format!("the parked messages {:?}", rows.seqs),
    }
}

async fn relay<O: Contract + Clone>(
    outbox: O,
    servers: &Servers,
    name: Option<&String>,
    until_empty: bool,
    printer: Printer,
) -> Result<(), Failure> {
    let publisher = IdempotentPublisher::builder(servers.amqp()?).connect().await?;
    let relay = Relay::new(outbox.clone(), publisher.clone());
    let relay = match name {
        Some(name) => relay.name(name),
        None => relay,
    };
    relay.check().await?;
    let monitor = relay.monitor();
    let ended = async {
        tokio::select! {
            () = interrupted(false) => {}
            () = emptied(&outbox, &monitor), if until_empty => {}
        }
    };
    relay.run_until(ended).await;
    publisher.close(Duration::from_secs(10)).await?;
    let status = monitor.status();
    printer.one(&vec![
        ("relayed", status.relayed.into()),
        ("parked", status.parked.into()),
        (
            "failed",
            status.failed.iter().map(|(kind, count)| ((*kind).to_owned(), Value::from(*count))).collect(),
        ),
        ("last_error", status.last_error.into()),
    ])?;
    Ok(())
}

/// Until nothing waits, and nothing is under way.
async fn emptied<O: Contract>(outbox: &O, monitor: &RelayMonitor) {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let is_empty = outbox.status().await.is_ok_and(|table| table.backlog == 0);
        if is_empty && monitor.status().in_flight == 0 {
            return;
        }
    }
}
