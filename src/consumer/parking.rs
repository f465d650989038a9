//! Where messages go that must not be tried again, and what is said of their failure.

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
