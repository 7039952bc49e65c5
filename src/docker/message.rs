//! The messages of the volume plugin protocol: lenient requests, and answers that Docker and Podman understand.

use std::collections::BTreeMap;

use axum::http::header::CONTENT_TYPE;
use axum::http::{Extensions, HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::telemetry::{Outcome, Severity};
use crate::volume::{Name, shorten};

/// The content type of an answer.
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// The paths of all calls. Metrics name no other call.
pub(super) const CALLS: [&str; 9] = [
    "/Plugin.Activate",
    "/VolumeDriver.Capabilities",
    "/VolumeDriver.Create",
    "/VolumeDriver.Get",
    "/VolumeDriver.List",
    "/VolumeDriver.Mount",
    "/VolumeDriver.Path",
    "/VolumeDriver.Remove",
    "/VolumeDriver.Unmount",
];

/// The options of a new volume.
pub(super) type Opts = BTreeMap<String, String>;

/// A call of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Activate,
    Capabilities,
    Create { name: String, opts: Opts },
    Get { name: String },
    List,
    Mount { name: String, user: String },
    Path { name: String },
    Remove { name: String },
    Unmount { name: String, user: String },
}

impl Request {
    /// Whether the call changes nothing. Such a call ends soon, also when a disk does not respond.
    pub(super) fn is_query(&self) -> bool {
        match self {
            Self::Activate | Self::Capabilities | Self::List | Self::Get { .. } | Self::Path { .. } => true,
            Self::Create { .. } | Self::Mount { .. } | Self::Remove { .. } | Self::Unmount { .. } => false,
        }
    }
}

/// The body of any call. Docker sends no content type, and Podman leaves out what is empty.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Body {
    name: String,
    /// Identifies the use of a volume: usually 64 hexadecimal digits, the same for each start of a container.
    #[serde(rename = "ID")]
    id: String,
    opts: Option<Opts>,
}

/// Parses a call.
///
/// An engine repeats a call whose connection was lost without its body, so an empty body is an error wherever a name is
/// needed.
///
/// # Errors
/// `Invalid` for an unknown call, a body that is not JSON, and a missing name.
pub(super) fn parse(path: &str, body: &[u8]) -> Result<Request> {
    let body = match body.trim_ascii() {
        [] => Body::default(),
        json => serde_json::from_slice::<Option<Body>>(json)
            .map_err(|error| {
                Error::caused(Kind::Invalid, "the body is not a request of a volume plugin", error)
            })?
            .unwrap_or_default(),
    };
    let Body { name, id: user, opts } = body;
    let request = match path.strip_prefix("/VolumeDriver.").unwrap_or(path) {
        "/Plugin.Activate" => return Ok(Request::Activate),
        "Capabilities" => return Ok(Request::Capabilities),
        "List" => return Ok(Request::List),
        "Create" => Request::Create { name: name.clone(), opts: opts.unwrap_or_default() },
        "Get" => Request::Get { name: name.clone() },
        "Mount" => Request::Mount { name: name.clone(), user },
        "Path" => Request::Path { name: name.clone() },
        "Remove" => Request::Remove { name: name.clone() },
        "Unmount" => Request::Unmount { name: name.clone(), user },
        _ => {
            let text = format!("{:?} is not a call of the volume plugin protocol", shorten(path));
            return Err(Error::new(Kind::Invalid, text));
        }
    };
    if name.is_empty() {
        let text = "the request names no volume: the connection was lost, and the call was repeated without its body; retry";
        return Err(Error::new(Kind::Invalid, text));
    }
    Ok(request)
}

/// The body of a successful answer.
pub(super) fn answer(mut body: Value) -> String {
    if let Some(fields) = body.as_object_mut() {
        fields.insert("Err".to_owned(), json!(""));
    }
    body.to_string()
}

/// The answer to List. It may be long, so it is written directly.
///
/// # Errors
/// `Internal` when it cannot be written.
pub(super) fn listing(names: &[Name]) -> Result<String> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Listed<'a> {
        name: &'a Name,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Listing<'a> {
        volumes: Vec<Listed<'a>>,
        err: &'static str,
    }
    let volumes = names.iter().map(|name| Listed { name }).collect();
    serde_json::to_string(&Listing { volumes, err: "" })
        .map_err(|error| Error::caused(Kind::Internal, "write the list of volumes", error))
}

/// The response with an answer, or with an error: status 500 and a JSON body, which both engines print.
pub(super) fn response(answer: Result<String>) -> Response {
    let (status, body, outcome) = match answer {
        Ok(body) => {
            let outcome = Outcome { code: "OK", message: String::new(), severity: Severity::Ok };
            (StatusCode::OK, body, outcome)
        }
        Err(error) => {
            let text = error.chain();
            let (code, severity) = code(error.kind());
            let body = json!({ "Err": text.as_str() }).to_string();
            (StatusCode::INTERNAL_SERVER_ERROR, body, Outcome { code, message: text, severity })
        }
    };
    let mut response = (status, [(CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
    response.extensions_mut().insert(outcome);
    response
}

/// The outcome of a call, for the log and the metrics.
pub(super) fn outcome(_: &HeaderMap, extensions: &Extensions) -> Outcome {
    let unknown = || Outcome { code: "Internal", message: String::new(), severity: Severity::Error };
    extensions.get::<Outcome>().cloned().unwrap_or_else(unknown)
}

/// The name of a kind in metrics, which are those of CSI, and how the result is logged.
fn code(kind: Kind) -> (&'static str, Severity) {
    match kind {
        Kind::Invalid | Kind::Unsupported => ("InvalidArgument", Severity::Info),
        Kind::NotFound => ("NotFound", Severity::Info),
        Kind::Conflict => ("AlreadyExists", Severity::Info),
        Kind::InUse => ("FailedPrecondition", Severity::Info),
        Kind::Busy => ("Aborted", Severity::Info),
        Kind::NoSpace => ("ResourceExhausted", Severity::Warn),
        Kind::OutOfRange => ("OutOfRange", Severity::Info),
        Kind::Unavailable | Kind::Unresponsive => ("Unavailable", Severity::Warn),
        Kind::Unreadable | Kind::Internal => ("Internal", Severity::Error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_docker_and_podman_are_understood() {
        let name = || "v1".to_owned();
        let opts = Opts::from([("size".to_owned(), "10m".to_owned())]);
        for (path, body, expected) in [
            ("/Plugin.Activate", "", Request::Activate),
            ("/VolumeDriver.List", "", Request::List),
            ("/VolumeDriver.List", "{}\n", Request::List),
            ("/VolumeDriver.Capabilities", "null", Request::Capabilities),
            (
                "/VolumeDriver.Create",
                r#"{"Name":"v1","Opts":{"size":"10m"}}"#,
                Request::Create { name: name(), opts },
            ),
            (
                "/VolumeDriver.Create",
                r#"{"Name":"v1","Opts":null}"#,
                Request::Create { name: name(), opts: Opts::new() },
            ),
            ("/VolumeDriver.Get", r#"{"Name":"v1","New":[1]}"#, Request::Get { name: name() }),
            (
                "/VolumeDriver.Mount",
                r#"{"Name":"v1","ID":"2f"}"#,
                Request::Mount { name: name(), user: "2f".to_owned() },
            ),
            (
                "/VolumeDriver.Unmount",
                r#"{"Name":"v1"}"#,
                Request::Unmount { name: name(), user: String::new() },
            ),
        ] {
            assert_eq!(parse(path, body.as_bytes()).unwrap(), expected, "{path} {body}");
        }
    }

    #[test]
    fn a_call_without_a_name_or_without_json_is_an_error() {
        for (path, body, expected) in [
            ("/VolumeDriver.Get", "", "names no volume"),
            ("/VolumeDriver.Create", "{}", "names no volume"),
            ("/VolumeDriver.Remove", "null", "names no volume"),
            ("/VolumeDriver.Mount", "Name=v1", "not a request of a volume plugin"),
            ("/VolumeDriver.Get", r#"{"Name":7}"#, "not a request of a volume plugin"),
            ("/VolumeDriver.Rename", r#"{"Name":"v1"}"#, "not a call"),
            ("/", "", "not a call"),
        ] {
            let error = parse(path, body.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{path}");
            assert!(error.chain().contains(expected), "{path}: {}", error.chain());
        }
    }

    #[test]
    fn every_call_of_the_table_is_parsed() {
        for path in CALLS {
            parse(path, br#"{"Name":"v1"}"#).unwrap();
        }
    }
}
