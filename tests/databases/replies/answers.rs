//! Every delivery is answered, at its own address.

use lapin::{
    message::Delivery,
    options::BasicConsumeOptions,
    types::{FieldTable, ShortString},
};

use futures_util::StreamExt;
use sqlx::Postgres;
use tokio::time::timeout;

use super::{Answer, Desk, Kind, Quote, Serving, reply_id, to};
use crate::databases::support::{
    DEADLINE,
    amqp::{Client, header},
    broker, eventually,
};

trials! {
    duplicate_gets_the_first_reply_at_its_own_address<Postgres, MySql, Sqlite>,
    request_without_reply_to_is_handled_and_its_reply_kept<Postgres, MySql, Sqlite>,
    client_without_correlation_id_goes_by_its_message_id,
    replies_of_a_batch<Postgres, MySql, Sqlite>,
    direct_reply_to_resubmitted,
}

pub async fn duplicate_gets_the_first_reply_at_its_own_address<K: Kind>() {
    let desk = Desk::<K>::open().await;
    let (serving, quote) = desk.serve();
    let (first, second) = (desk.mailbox().await, desk.mailbox().await);
    desk.ask("order-42", "q", to(&first).with_correlation_id("c-1".into())).await;
    let got = eventually("an answer", async || desk.client.get(&first).await).await;
    assert_eq!(Answer::read(&got), Answer::of("order-42", "c-1", "run 0"));
    let kind = got.properties.kind().as_ref().map(ShortString::as_str);
    let mime = got.properties.content_type().as_ref().map(ShortString::as_str);
    assert_eq!((kind, mime), (Some("quote"), Some("text/plain; charset=utf-8")));
    assert_eq!((header(&got, "tenant").as_deref(), *got.properties.delivery_mode()), (Some("t-1"), Some(2)));

    desk.ask("order-42", "q", to(&second).with_correlation_id("c-2".into())).await;
    let again = eventually("an answer", async || desk.client.get(&second).await).await;
    assert_eq!(Answer::read(&again), Answer::of("order-42", "c-2", "run 0"));
    let properties =
        |got: &lapin::message::BasicGetMessage| got.properties.clone().with_correlation_id("any".into());
    assert_eq!(properties(&again), properties(&got), "and all else is as it was");
    serving.answered("sent", 2).await;
    serving.stop().await;
    assert_eq!((quote.insert.runs(), desk.table.effects().await), (1, (1, 1)));
    assert_eq!((desk.client.ready(&first).await, desk.client.ready(&second).await), (0, 0));
    desk.all_settled().await;
}

pub async fn request_without_reply_to_is_handled_and_its_reply_kept<K: Kind>() {
    let desk = Desk::<K>::open().await;
    let (serving, quote) = desk.serve();
    desk.ask("order-42", "q", lapin::BasicProperties::default()).await;
    eventually("it takes effect", async || (desk.table.effects().await.0 == 1).then_some(())).await;
    let mailbox = desk.mailbox().await;
    desk.ask("order-42", "q", to(&mailbox)).await;
    assert_eq!(desk.answer(&mailbox).await, Answer::of("order-42", "order-42", "run 0"));
    serving.answered("sent", 1).await;
    assert_eq!(serving.replies().len(), 1, "nothing else is counted");
    serving.stop().await;
    assert_eq!(quote.insert.runs(), 1);
    desk.all_settled().await;
}

pub async fn client_without_correlation_id_goes_by_its_message_id() {
    let desk = Desk::<Postgres>::open().await;
    let (serving, _) = desk.serve();
    let mailbox = desk.mailbox().await;
    desk.ask("a-foreign-id", "q", to(&mailbox)).await;
    assert_eq!(desk.answer(&mailbox).await.correlation, "a-foreign-id");
    serving.stop().await;
}

pub async fn replies_of_a_batch<K: Kind>() {
    const REQUESTS: u32 = 40;
    let desk = Desk::<K>::open().await;
    let (all, copy) = (desk.mailbox().await, desk.mailbox().await);
    for n in 0..REQUESTS {
        let id = format!("order-{n}");
        desk.ask(&id, &id, to(&all).with_correlation_id(format!("c-{n}").into())).await;
        if n % 10 == 7 {
            // Of what is in the same batch, most likely.
            desk.ask(&id, &id, to(&copy).with_correlation_id(format!("copy-{n}").into())).await;
        }
    }
    let quote = Quote::new(&desk.table);
    let serving = Serving::start(desk.consumer().batch(64), quote.clone());
    serving.answered("sent", u64::from(REQUESTS) + 4).await;
    serving.stop().await;
    let mut bodies = std::collections::BTreeMap::new();
    for _ in 0..REQUESTS {
        let Answer { body, correlation, id } = desk.answer(&all).await;
        let request = correlation.replace("c-", "order-");
        assert_eq!(id, reply_id(&request));
        assert!(bodies.insert(request, body).is_none(), "{correlation} was answered twice");
    }
    for _ in 0..4 {
        let Answer { body, correlation, id } = desk.answer(&copy).await;
        let request = correlation.replace("copy-", "order-");
        assert_eq!((id, Some(&body)), (reply_id(&request), bodies.get(&request)));
    }
    assert!(quote.batches.lock().unwrap().iter().any(|requests| *requests > 4), "{:?}", quote.batches);
    assert_eq!(desk.table.effects().await, (i64::from(REQUESTS), i64::from(REQUESTS)));
    assert_eq!(desk.kept().await, i64::from(REQUESTS));
    desk.all_settled().await;
}

/// A requester that consumes `amq.rabbitmq.reply-to`, and asks on the same channel.
struct Direct {
    client: Client,
    answers: lapin::Consumer,
}

impl Direct {
    async fn connect() -> Self {
        let client = Client::connect(&broker()).await;
        let (name, options) =
            ("amq.rabbitmq.reply-to", BasicConsumeOptions { no_ack: true, ..Default::default() });
        let answers =
            client.channel.basic_consume(name.into(), "".into(), options, FieldTable::default()).await;
        Self { client, answers: answers.expect("consume") }
    }

    async fn ask(&self, queue: &str, id: &str) {
        let properties = to("amq.rabbitmq.reply-to").with_message_id(id.into());
        self.client.publish(queue, b"q", properties).await;
    }

    async fn answer(&mut self) -> Delivery {
        timeout(DEADLINE, self.answers.next()).await.expect("in time").expect("consuming").expect("an answer")
    }
}

pub async fn direct_reply_to_resubmitted() {
    let desk = Desk::<Postgres>::open().await;
    // It asks, and is gone before it is answered.
    let gone = Direct::connect().await;
    gone.ask(&desk.queue, "order-42").await;
    drop(gone);
    let (serving, quote) = desk.serve();
    serving.answered("sent", 1).await;
    for n in 2..4 {
        let mut requester = Direct::connect().await;
        requester.ask(&desk.queue, "order-42").await;
        let answer = requester.answer().await;
        assert_eq!(
            (answer.data.as_slice(), answer.properties.message_id()),
            (&b"run 0"[..], &Some(reply_id("order-42").into()))
        );
        serving.answered("sent", n).await;
    }
    serving.stop().await;
    assert_eq!(quote.insert.runs(), 1);
    desk.all_settled().await;
}
