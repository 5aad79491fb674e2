//! The ports of TCP and UDP that a module may use. [`super::landlock`], [`super::seccomp`] and
//! [`super::cgroups`] each enforce a part.
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

/// The allowed ports of one protocol for one use, as ranges that do not touch each other. `None`
/// allows all ports.
pub(crate) type Allowed = Option<Vec<RangeInclusive<u16>>>;

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Ports {
    pub(crate) tcp: Protocol,
    pub(crate) udp: Protocol,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Protocol {
    pub(crate) bind: Allowed,
    pub(crate) connect: Allowed,
}

impl Ports {
    pub(crate) fn are_limited(&self) -> bool {
        self.tcp.is_limited() || self.udp.is_limited()
    }

    /// Whether the module may listen on some TCP ports and not on others. A port that the kernel
    /// chooses is one of the others.
    pub(crate) fn listens_at_some(&self) -> bool {
        let chosen = |ranges: &Vec<RangeInclusive<u16>>| ranges.iter().any(|it| *it.start() == 0);
        self.tcp.bind.as_ref().is_some_and(|ranges| !ranges.is_empty() && !chosen(ranges))
    }
}

impl Protocol {
    /// Whether the module may use no port at all, and so has no use for a socket.
    pub(crate) fn is_refused(&self) -> bool {
        let none = |allowed: &Allowed| allowed.as_ref().is_some_and(Vec::is_empty);
        none(&self.bind) && none(&self.connect)
    }

    /// Whether the module's sockets may use some ports and not others.
    pub(crate) fn is_divided(&self) -> bool {
        self.is_limited() && !self.is_refused()
    }

    fn is_limited(&self) -> bool {
        self.bind.is_some() || self.connect.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_all_or_some_or_nothing() {
        let protocol = |bind, connect| Protocol { bind, connect };
        let all = protocol(None, None);
        assert!(!all.is_divided() && !all.is_refused());
        let nothing = protocol(Some(vec![]), Some(vec![]));
        assert!(!nothing.is_divided() && nothing.is_refused());
        for some in [protocol(Some(vec![]), None), protocol(Some(vec![1..=1]), Some(vec![]))] {
            assert!(some.is_divided() && !some.is_refused());
        }
    }
}
