//! Where messages go that must not be tried again, and what is said of their failure.

/// The delivery limit of queues that must have none.
///
/// Not -1, which says so from RabbitMQ 4.0 on: 3.x takes it for a limit, and removes a message that is given back for the first time. And not nothing, which is
/// a limit of 20 from 4.0 on.
pub(super) const UNLIMITED: i64 = i32::MAX as i64;

/// Where parked messages go.
#[derive(Debug, Clone)]
pub(crate) struct ParkingTarget {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    declare: bool,
}

impl ParkingTarget {
    pub(crate) fn queue_beside(queue: &str) -> Self {
        Self { exchange: String::new(), routing_key: format!("{queue}.parked"), declare: true }
    }

    pub(crate) fn exchange(exchange: String, routing_key: String) -> Self {
        Self { exchange, routing_key, declare: false }
    }

    pub(crate) fn queue_to_declare(&self) -> Option<&str> {
        self.declare.then_some(self.routing_key.as_str())
    }
}
