//! Events as bytes, for a broker that keeps them in a directory: their fields as text, with tabs between.

use eventflow::{Codec, CodecError};

use super::airport::{Alert, Flight};
use super::stored::Done;

pub(crate) struct FlightBytes;
pub(crate) struct AlertBytes;
pub(crate) struct DoneBytes;

impl Codec<Flight> for FlightBytes {
    fn name(&self) -> &str {
        "flight/1"
    }

    fn encode(&self, flight: &Flight, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let Flight { line, carrier, origin, departed, delay } = flight;
        join(&[&line.to_string(), carrier, origin, &departed.to_string(), &minutes(*delay)], out)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Flight, CodecError> {
        let [line, carrier, origin, departed, delay] = split(bytes)?;
        Ok(Flight {
            line: number(line)?,
            carrier: carrier.to_owned(),
            origin: origin.to_owned(),
            departed: number(departed)?,
            delay: optional(delay)?,
        })
    }
}

impl Codec<Alert> for AlertBytes {
    fn name(&self) -> &str {
        "alert/1"
    }

    fn encode(&self, alert: &Alert, out: &mut Vec<u8>) -> Result<(), CodecError> {
        join(&[&alert.line.to_string()], out)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Alert, CodecError> {
        let [line] = split(bytes)?;
        Ok(Alert { line: number(line)? })
    }
}

impl Codec<Done> for DoneBytes {
    fn name(&self) -> &str {
        "done/1"
    }

    fn encode(&self, done: &Done, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let Done { service, line, what, delay } = done;
        join(&[service, &line.to_string(), what, &minutes(*delay)], out)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Done, CodecError> {
        let [service, line, what, delay] = split(bytes)?;
        Ok(Done {
            service: service.to_owned(),
            line: number(line)?,
            what: what.to_owned(),
            delay: optional(delay)?,
        })
    }
}

fn join(fields: &[&str], out: &mut Vec<u8>) -> Result<(), CodecError> {
    if fields.iter().any(|field| field.contains('\t')) {
        return Err(CodecError::new("a field with a tab in it"));
    }
    out.extend_from_slice(fields.join("\t").as_bytes());
    Ok(())
}

fn split<const N: usize>(bytes: &[u8]) -> Result<[&str; N], CodecError> {
    let text = std::str::from_utf8(bytes).map_err(|_| CodecError::new("no text"))?;
    let fields: Vec<_> = text.split('\t').collect();
    fields.try_into().map_err(|_| CodecError::new("another number of fields"))
}

fn minutes(delay: Option<i32>) -> String {
    delay.map(|minutes| minutes.to_string()).unwrap_or_default()
}

fn optional(field: &str) -> Result<Option<i32>, CodecError> {
    if field.is_empty() { Ok(None) } else { number(field).map(Some) }
}

fn number<N: std::str::FromStr>(field: &str) -> Result<N, CodecError> {
    field.parse().map_err(|_| CodecError::new("a field that is no number"))
}
