//! The service that compiles modules: each in a container of its own, in the turn of its tenant. It
//! uses [`crate::container`] to make that container.
#![forbid(unsafe_code)]

mod confine;
mod queue;
mod slot;
mod worker;

pub(crate) use worker::{Ended, Order, work};
