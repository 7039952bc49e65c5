//! Every rule about volumes; synchronous, and knows no protocol.

pub mod users;
