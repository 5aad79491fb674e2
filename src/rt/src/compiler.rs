//! The service that compiles modules: in a container of its own, in the turn of its tenant. It
//! stands above [`crate::container`], which makes that container.
#![forbid(unsafe_code)]

mod confine;
mod place;
mod queue;
mod worker;

pub(crate) use worker::{Ended, Order, work};
