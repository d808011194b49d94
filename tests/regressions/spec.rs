//! The text forms of the model. Each value prints text that parses to the same value.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use portfwd::model::error::is_hidden;
use portfwd::model::{
    ChainName, Comment, Forward, IfName, Listen, Mode, Packet, ParseError, Pool, PortRange, Ports, Protocol, SetName,
    Source, Target, prefix,
};

/// Parses each line of any text as every type. Two lines are also parsed as `listen` and `to` of a forward.
pub fn holds(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for line in text.lines() {
        type_round_trips::<Listen>(line);
        type_round_trips::<Target>(line);
        type_round_trips::<Ports>(line);
        type_round_trips::<PortRange>(line);
        type_round_trips::<Protocol>(line);
        type_round_trips::<Source>(line);
        type_round_trips::<Pool>(line);
        type_round_trips::<Mode>(line);
        type_round_trips::<IfName>(line);
        type_round_trips::<SetName>(line);
        type_round_trips::<ChainName>(line);
        type_round_trips::<Comment>(line);
        type_round_trips::<Packet>(line);
        round_trips(line, prefix::parse);
    }
    if let Some((listen, to)) = text.split_once('\n')
        && let (Ok(listen), Ok(to)) = (listen.parse(), to.parse())
    {
        expect_valid_bindings(&Forward::new(listen, to));
    }
}

fn type_round_trips<T: FromStr<Err = ParseError> + Display + Debug + PartialEq>(text: &str) {
    round_trips(text, str::parse::<T>);
}

fn round_trips<T: Display + Debug + PartialEq>(text: &str, parse: impl Fn(&str) -> Result<T, ParseError>) {
    match parse(text) {
        Ok(value) => {
            let printed = value.to_string();
            assert_eq!(parse(&printed).as_ref(), Ok(&value), "{text:?} prints as {printed:?}");
        }
        Err(error) => expect_printable(&error),
    }
}

/// Checks that an error message contains no hidden characters of the text.
fn expect_printable(error: &ParseError) {
    assert!(!error.to_string().contains(is_hidden) && !error.help().contains(is_hidden), "{error:?}");
}

/// Checks that each binding has ports from the forward's text and a valid target port.
fn expect_valid_bindings(forward: &Forward) {
    match forward.bindings() {
        Ok(bindings) => {
            assert!(!bindings.is_empty(), "{forward:?}");
            for binding in bindings {
                let written = forward.listen.ports.ranges();
                assert!(written.iter().any(|range| range.contains(binding.ports)), "{binding} of {forward:?}");
                // Port 0 is no valid target port.
                for port in [binding.ports.first(), binding.ports.last()] {
                    assert!(binding.target_port(port) > 0, "{binding} of {forward:?}");
                }
            }
        }
        Err(error) => expect_printable(&error),
    }
}
