//! The cases, by name.

use std::future::Future;
use std::time::Duration;

use futures::future::try_join_all;
use protobuf::well_known_types::empty::Empty;
use protobuf::Message;
use tokio::time::{sleep_until, Instant};
use ttrpc::context::{with_duration, Context};
use ttrpc::r#async::{CSReceiver, CSSender, ClientStreamReceiver};
use ttrpc::{Error, Request, Result};

use crate::client::Outcome;
use crate::generated::conformance::{Failure, Nap, Part, Payload, Size, Total};
use crate::{divide, pattern};

const SERVICE: &str = "shim.conformance.v1.Conformance";

pub async fn run(o: &Outcome, name: &str) -> Result<()> {
    match name {
        "echo_empty" => echo(o, payload(0, 0)).await,
        "echo_64" => echo(o, payload(1, 64)).await,
        "echo_1m" => echo(o, payload(1, 1 << 20)).await,
        "echo_max" => echo(o, payload(1, 4194253)).await,
        "request_too_large" => echo(o, payload(1, 4194254)).await,
        "echo_stream" => ping_pong(o, 50, 1).await,
        "echo_stream_max" => echo_stream_max(o).await,
        "echo_stream_unread" => echo_stream_unread(o).await,
        "echo_stream_bulk" => echo_stream_bulk(o).await,
        "echo_stream_stalled" => echo_stream_stalled(o).await,
        "stream_message_too_large" => stream_message_too_large(o).await,
        "sum" => sum(o, 202).await,
        "sum_none" => sum(o, 0).await,
        "divide" => divided(o, 30, 0).await,
        "divide_none" => divided(o, 0, 0).await,
        "divide_backlog" => divided(o, 5000, 300).await,
        "echo_null" => echo_null(o).await,
        "echo_null_stream" => echo_null_stream(o).await,
        "empty_request" => empty_request(o).await,
        "fail" => fail(o).await,
        "fail_unknown_code" => fail_unknown_code(o).await,
        "fail_stream" => fail_stream(o, 5, 5).await,
        "fail_stream_at_once" => fail_stream(o, 9, 0).await,
        "sleep" => sleep(o, 50, Duration::from_secs(10)).await,
        "sleep_deadline" => sleep_deadline(o).await,
        "unknown_service" => raw(o, "shim.conformance.v1.Nothing", "Echo").await,
        "unknown_method" => raw(o, SERVICE, "Nothing").await,
        "unknown_stream" => unknown_stream(o).await,
        "metadata" => metadata(o).await,
        "blob_max" => blob(o, 4194292).await,
        "blob_too_large" => blob(o, 4194295).await,
        "concurrent_calls" => concurrently(64, |i| echo(o, payload(i as u32, i * 1000))).await,
        "large_calls" => concurrently(8, |i| large_calls(o, i as u32)).await,
        "concurrent_streams" => concurrently(10, |i| ping_pong(o, 20, 100 * i)).await,
        "abandoned" => abandoned(o).await,
        "abandoned_bidi" => abandoned_bidi(o).await,
        _ => {
            o.problem("no such case".into());
            Ok(())
        }
    }
}

fn payload(seq: u32, size: usize) -> Payload {
    Payload { seq, data: pattern(size), ..Default::default() }
}

fn none() -> Context {
    Context::default()
}

async fn echo(o: &Outcome, request: Payload) -> Result<()> {
    o.sent(&request);
    let answer = o.stub().echo(none(), &request).await?;
    o.received(&answer);
    compare(o, &request, &answer);
    Ok(())
}

fn compare(o: &Outcome, request: &Payload, answer: &Payload) {
    if answer.seq != request.seq + 1 || answer.data != request.data {
        o.problem(format!("payload {} came back as {} with {} bytes", request.seq, answer.seq, answer.data.len()));
    }
}

/// Sends `count` payloads, one after the answer to the other, then expects the end.
async fn ping_pong(o: &Outcome, count: usize, step: usize) -> Result<()> {
    let (sender, mut receiver) = o.stub().echo_stream(none()).await?.split();
    for i in 0..count {
        ping(o, &sender, &mut receiver, payload(i as u32, i * step)).await?;
    }
    end_of_echo(o, &sender, &mut receiver).await
}

async fn ping(
    o: &Outcome,
    sender: &CSSender<Payload>,
    receiver: &mut CSReceiver<Payload>,
    request: Payload,
) -> Result<()> {
    sender.send(&request).await?;
    o.sent(&request);
    let answer = receiver.recv().await?;
    o.received(&answer);
    compare(o, &request, &answer);
    Ok(())
}

async fn end_of_echo(o: &Outcome, sender: &CSSender<Payload>, receiver: &mut CSReceiver<Payload>) -> Result<()> {
    sender.close_send().await?;
    expect_end(o, receiver.recv().await.map(Some))
}

fn expect_end<T: Message>(o: &Outcome, result: Result<Option<T>>) -> Result<()> {
    match result {
        Ok(Some(message)) => {
            o.received(&message);
            o.problem("a message where the end should be".into());
            Ok(())
        }
        Ok(None) | Err(Error::Eof) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn echo_stream_max(o: &Outcome) -> Result<()> {
    let (sender, mut receiver) = o.stub().echo_stream(none()).await?.split();
    ping(o, &sender, &mut receiver, payload(1, 4194297)).await?;
    end_of_echo(o, &sender, &mut receiver).await
}

/// Sends all before the first answer is read.
async fn echo_stream_unread(o: &Outcome) -> Result<()> {
    let (sender, mut receiver) = o.stub().echo_stream(none()).await?.split();
    send_echo(o, &sender, 60, 1000).await?;
    read_echo(o, &mut receiver, 60, 1000).await
}

/// Sends and reads 16 MiB at the same time.
async fn echo_stream_bulk(o: &Outcome) -> Result<()> {
    let (sender, mut receiver) = o.stub().echo_stream(none()).await?.split();
    let (count, size) = (64, 256 << 10);
    futures::try_join!(send_echo(o, &sender, count, size), read_echo(o, &mut receiver, count, size)).map(|_| ())
}

/// Calls while a stream that nobody reads has filled both directions.
async fn echo_stream_stalled(o: &Outcome) -> Result<()> {
    let (sender, _receiver) = o.stub().echo_stream(none()).await?.split();
    let sending = tokio::spawn(async move {
        for i in 0..5000 {
            sender.send(&payload(i, 5000)).await?;
        }
        Ok::<(), Error>(())
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let result = echo(o, payload(1, 64)).await;
    sending.abort();
    result
}

async fn send_echo(o: &Outcome, sender: &CSSender<Payload>, count: u32, size: usize) -> Result<()> {
    for i in 0..count {
        let request = payload(i, size);
        sender.send(&request).await?;
        o.sent(&request);
    }
    sender.close_send().await
}

async fn read_echo(o: &Outcome, receiver: &mut CSReceiver<Payload>, count: u32, size: usize) -> Result<()> {
    for i in 0..count {
        let answer = receiver.recv().await?;
        o.received(&answer);
        compare(o, &payload(i, size), &answer);
    }
    expect_end(o, receiver.recv().await.map(Some))
}

/// Tells by its status how the message was refused; the stream goes on.
async fn stream_message_too_large(o: &Outcome) -> Result<()> {
    let (sender, mut receiver) = o.stub().echo_stream(none()).await?.split();
    ping(o, &sender, &mut receiver, payload(1, 0)).await?;
    o.refusal(&sender.send(&payload(2, 4194298)).await);
    ping(o, &sender, &mut receiver, payload(3, 0)).await?;
    end_of_echo(o, &sender, &mut receiver).await
}

async fn sum(o: &Outcome, count: i64) -> Result<()> {
    let mut stream = o.stub().sum(none()).await?;
    let mut expected = Total { count, ..Default::default() };
    for i in 0..count {
        let value = if i % 2 == 1 { i * i - 10000 } else { 0 };
        let part = Part { value, ..Default::default() };
        expected.sum += value;
        stream.send(&part).await?;
        o.sent(&part);
    }
    let total = stream.close_and_recv().await?;
    o.received(&total);
    if total != expected {
        o.problem(format!("total is {total:?}, not {expected:?}"));
    }
    Ok(())
}

async fn divided(o: &Outcome, count: i64, pause_ms: u64) -> Result<()> {
    let request = Total { sum: 1000003, count, ..Default::default() };
    o.sent(&request);
    let mut stream = o.stub().divide(none(), &request).await?;
    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    for (i, value) in divide(request.sum, count).into_iter().enumerate() {
        let part = next(o, &mut stream).await?;
        if part.value != value {
            o.problem(format!("part {i} is {}, not {value}", part.value));
        }
    }
    expect_end(o, stream.recv().await)
}

/// Receives a message that has to come.
async fn next<T: Message>(o: &Outcome, stream: &mut ClientStreamReceiver<T>) -> Result<T> {
    let message = stream.recv().await?.ok_or(Error::Others("the end where a message should be".into()))?;
    o.received(&message);
    Ok(message)
}

async fn echo_null(o: &Outcome) -> Result<()> {
    let mut stream = o.stub().echo_null(none()).await?;
    for i in 0..100 {
        let request = payload(i, 16);
        stream.send(&request).await?;
        o.sent(&request);
    }
    o.received(&stream.close_and_recv().await?);
    Ok(())
}

async fn echo_null_stream(o: &Outcome) -> Result<()> {
    let (sender, mut receiver) = o.stub().echo_null_stream(none()).await?.split();
    let send = async {
        for i in 0..100 {
            let request = payload(i, 16);
            sender.send(&request).await?;
            o.sent(&request);
        }
        sender.close_send().await
    };
    let receive = async {
        for _ in 0..100 {
            o.received(&receiver.recv().await?);
        }
        expect_end(o, receiver.recv().await.map(Some))
    };
    futures::try_join!(send, receive).map(|_| ())
}

async fn empty_request(o: &Outcome) -> Result<()> {
    let request = Empty::new();
    o.sent(&request);
    let mut stream = o.stub().empty_request(none(), &request).await?;
    for seq in 0..2 {
        let answer = next(o, &mut stream).await?;
        if answer.seq != seq || !answer.data.is_empty() {
            o.problem(format!("payload {seq} is {answer:?}"));
        }
    }
    expect_end(o, stream.recv().await)
}

async fn fail(o: &Outcome) -> Result<()> {
    for code in 1..=16 {
        let request = Failure { code, message: format!("reason {code} ü"), ..Default::default() };
        o.sent(&request);
        o.status(&o.stub().fail(none(), &request).await);
    }
    Ok(())
}

async fn fail_unknown_code(o: &Outcome) -> Result<()> {
    let request = Failure { code: 99, message: "unheard of".into(), ..Default::default() };
    o.sent(&request);
    o.stub().fail(none(), &request).await.map(|_| ())
}

async fn fail_stream(o: &Outcome, code: i32, after: i32) -> Result<()> {
    let request = Failure { code, message: "no more".into(), after, ..Default::default() };
    o.sent(&request);
    let mut stream = o.stub().fail_stream(none(), &request).await?;
    for value in 1..=i64::from(after) {
        let part = next(o, &mut stream).await?;
        if part.value != value {
            o.problem(format!("part {value} is {}", part.value));
        }
    }
    expect_end(o, stream.recv().await)
}

async fn sleep(o: &Outcome, milliseconds: i64, timeout: Duration) -> Result<()> {
    let request = Nap { milliseconds, ..Default::default() };
    o.sent(&request);
    let answer = o.stub().sleep(with_duration(timeout), &request).await?;
    o.received(&answer);
    Ok(())
}

/// Stays until a late answer would have come.
async fn sleep_deadline(o: &Outcome) -> Result<()> {
    let began = Instant::now();
    let result = sleep(o, 1000, Duration::from_millis(200)).await;
    let took = began.elapsed();
    if took > Duration::from_millis(900) {
        o.problem(format!("the deadline came after {took:?}"));
    }
    sleep_until(began + Duration::from_millis(1200)).await;
    result
}

fn open(service: &str, method: &str, message: &Payload) -> Request {
    Request {
        service: service.into(),
        method: method.into(),
        payload: message.write_to_bytes().expect("a small message is encoded"),
        ..Default::default()
    }
}

async fn raw(o: &Outcome, service: &str, method: &str) -> Result<()> {
    let request = payload(1, 0);
    o.sent(&request);
    o.client.request(open(service, method, &request)).await.map(|_| ())
}

async fn unknown_stream(o: &Outcome) -> Result<()> {
    let request = payload(1, 0);
    o.sent(&request);
    let mut stream = o.client.new_stream(open(SERVICE, "NothingStream", &request), false, true).await?;
    match stream.recv().await {
        Ok(_) => expect_end(o, Ok(Some(Empty::new()))),
        Err(error) => expect_end::<Empty>(o, Err(error)),
    }
}

async fn metadata(o: &Outcome) -> Result<()> {
    let request = Empty::new();
    o.sent(&request);
    let mut context = none();
    for value in ["b", "a", "b"] {
        context.add("shim-test".into(), value.into());
    }
    context.add("Other-Key".into(), "ü".into());
    let answer = o.stub().metadata(context, &request).await?;
    o.received(&answer);
    for pair in answer.pairs {
        o.pair(&pair.key, &pair.value);
    }
    Ok(())
}

async fn blob(o: &Outcome, bytes: i64) -> Result<()> {
    let request = Size { bytes, ..Default::default() };
    o.sent(&request);
    let answer = o.stub().blob(none(), &request).await?;
    o.received(&answer);
    if answer.data != pattern(bytes as usize) {
        o.problem(format!("the blob has {} other bytes", answer.data.len()));
    }
    Ok(())
}

/// Fills both directions of the socket.
async fn large_calls(o: &Outcome, seq: u32) -> Result<()> {
    for _ in 0..20 {
        echo(o, payload(seq, 200_000)).await?;
    }
    Ok(())
}

async fn concurrently<F: Future<Output = Result<()>>>(count: usize, run: impl Fn(usize) -> F) -> Result<()> {
    try_join_all((0..count).map(run)).await.map(|_| ())
}

/// Leaves a stream while its answers arrive.
async fn abandoned(o: &Outcome) -> Result<()> {
    let request = Total { sum: 1000003, count: 50, ..Default::default() };
    o.sent(&request);
    let mut stream = o.stub().divide(none(), &request).await?;
    next(o, &mut stream).await?;
    next(o, &mut stream).await?;
    Ok(())
}

/// Leaves a stream that the server still waits on.
async fn abandoned_bidi(o: &Outcome) -> Result<()> {
    let (sender, mut receiver) = o.stub().echo_stream(none()).await?.split();
    for i in 0..3 {
        ping(o, &sender, &mut receiver, payload(i, 0)).await?;
    }
    Ok(())
}
