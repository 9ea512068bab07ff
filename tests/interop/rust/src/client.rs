//! One case on one connection, and the line of JSON that the driver reads about it.

use std::sync::Mutex;

use protobuf::Message;
use serde_json::{json, Value};
use ttrpc::r#async::Client;
use ttrpc::Error;

use crate::generated::conformance::Payload;
use crate::generated::conformance_ttrpc::ConformanceClient;

// What cannot be put into a status: the connection has ended.
const CLOSED: i32 = -1;
// What the crate reports without a code, and that is none of the cases below.
const NO_CODE: i32 = -2;

pub struct Outcome {
    pub client: Client,
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    sent: (u64, u64),
    received: (u64, u64),
    statuses: Vec<Value>,
    pairs: Vec<Value>,
    problems: Vec<String>,
}

pub async fn attempt(socket: &str, name: &str) -> Value {
    let client = match Client::connect(&format!("unix://{socket}")).await {
        Ok(client) => client,
        Err(error) => return json!({"case": name, "code": NO_CODE, "message": error.to_string()}),
    };
    let outcome = Outcome { client, facts: Mutex::default() };
    let result = crate::cases::run(&outcome, name).await;
    let (code, message) = describe(&result);
    let request = Payload { seq: 7, ..Default::default() };
    let answer = outcome.stub().echo(Default::default(), &request).await;
    let facts = outcome.facts.into_inner().unwrap();
    json!({
        "case": name,
        "code": code,
        "message": message,
        "sent": facts.sent,
        "received": facts.received,
        "statuses": facts.statuses,
        "pairs": facts.pairs,
        "problems": facts.problems,
        "alive": answer.is_ok_and(|answer| answer.seq == 8),
    })
}

/// Returns code and message.  The crate refuses and times out with texts, without codes.
pub fn describe<T>(result: &ttrpc::Result<T>) -> (i32, String) {
    match result {
        Ok(_) => (0, String::new()),
        Err(Error::RpcStatus(status)) => (status.code.value(), status.message.clone()),
        Err(Error::Socket(_) | Error::RemoteClosed) => (CLOSED, "closed".into()),
        Err(Error::Others(text)) if text == "Request deadline elapsed" => (4, "deadline".into()),
        Err(Error::Others(text)) if text.contains("exceed maximum message size") => (8, text.clone()),
        Err(error) => (NO_CODE, error.to_string()),
    }
}

impl Outcome {
    pub fn stub(&self) -> ConformanceClient {
        ConformanceClient::new(self.client.clone())
    }

    pub fn sent(&self, message: &impl Message) {
        count(&mut self.facts.lock().unwrap().sent, message);
    }

    pub fn received(&self, message: &impl Message) {
        count(&mut self.facts.lock().unwrap().received, message);
    }

    pub fn status<T>(&self, result: &ttrpc::Result<T>) {
        let (code, message) = describe(result);
        self.facts.lock().unwrap().statuses.push(json!([code, message]));
    }

    pub fn refusal<T>(&self, result: &ttrpc::Result<T>) {
        self.facts.lock().unwrap().statuses.push(json!([describe(result).0, ""]));
    }

    pub fn pair(&self, key: &str, value: &str) {
        self.facts.lock().unwrap().pairs.push(json!([key, value]));
    }

    pub fn problem(&self, text: String) {
        self.facts.lock().unwrap().problems.push(text);
    }
}

fn count(counter: &mut (u64, u64), message: &impl Message) {
    counter.0 += 1;
    counter.1 += message.compute_size();
}
