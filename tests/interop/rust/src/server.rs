//! The service, answering until the standard input ends, so that nothing is left when the driver dies.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protobuf::well_known_types::empty::Empty;
use protobuf::EnumOrUnknown;
use tokio::io::AsyncReadExt;
use ttrpc::r#async::{Server, ServerStream, ServerStreamReceiver, ServerStreamSender, TtrpcContext};
use ttrpc::{Error, Result, Status};

use crate::generated::conformance::{Failure, Nap, Pair, Pairs, Part, Payload, Size, Total};
use crate::generated::conformance_ttrpc::{create_conformance, Conformance};

pub async fn serve(socket: &str) {
    let mut server = Server::new()
        .bind(&format!("unix://{socket}"))
        .expect("the socket is free")
        .register_service(create_conformance(Arc::new(Service)));
    server.start().await.expect("the server starts");
    println!("ready");
    let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    std::process::exit(0);
}

struct Service;

fn plus_one(request: Payload) -> Payload {
    Payload { seq: request.seq + 1, data: request.data, ..Default::default() }
}

fn status(failure: &Failure) -> Error {
    let mut status = Status::new();
    status.code = EnumOrUnknown::from_i32(failure.code);
    status.message = failure.message.clone();
    Error::RpcStatus(status)
}

#[async_trait]
impl Conformance for Service {
    async fn echo(&self, _: &TtrpcContext, request: Payload) -> Result<Payload> {
        Ok(plus_one(request))
    }

    async fn echo_stream(&self, _: &TtrpcContext, mut stream: ServerStream<Payload, Payload>) -> Result<()> {
        while let Some(request) = stream.recv().await? {
            stream.send(&plus_one(request)).await?;
        }
        Ok(())
    }

    async fn sum(&self, _: &TtrpcContext, mut stream: ServerStreamReceiver<Part>) -> Result<Total> {
        let mut total = Total::new();
        while let Some(part) = stream.recv().await? {
            total.sum += part.value;
            total.count += 1;
        }
        Ok(total)
    }

    async fn divide(&self, _: &TtrpcContext, total: Total, stream: ServerStreamSender<Part>) -> Result<()> {
        for value in crate::divide(total.sum, total.count) {
            stream.send(&Part { value, ..Default::default() }).await?;
        }
        Ok(())
    }

    async fn echo_null(&self, _: &TtrpcContext, mut stream: ServerStreamReceiver<Payload>) -> Result<Empty> {
        while stream.recv().await?.is_some() {}
        Ok(Empty::new())
    }

    async fn echo_null_stream(&self, _: &TtrpcContext, stream: ServerStream<Empty, Payload>) -> Result<()> {
        let (sender, mut receiver) = stream.split();
        let mut answers = tokio::task::JoinSet::new();
        while receiver.recv().await?.is_some() {
            let sender = sender.clone();
            answers.spawn(async move { sender.send(&Empty::new()).await });
        }
        while let Some(answer) = answers.join_next().await {
            answer.expect("no panic")?;
        }
        Ok(())
    }

    async fn empty_request(&self, _: &TtrpcContext, _: Empty, stream: ServerStreamSender<Payload>) -> Result<()> {
        stream.send(&Payload::new()).await?;
        stream.send(&Payload { seq: 1, ..Default::default() }).await
    }

    async fn fail_stream(&self, _: &TtrpcContext, failure: Failure, stream: ServerStreamSender<Part>) -> Result<()> {
        for value in 1..=i64::from(failure.after) {
            stream.send(&Part { value, ..Default::default() }).await?;
        }
        Err(status(&failure))
    }

    async fn fail(&self, _: &TtrpcContext, failure: Failure) -> Result<Empty> {
        Err(status(&failure))
    }

    async fn sleep(&self, _: &TtrpcContext, nap: Nap) -> Result<Empty> {
        tokio::time::sleep(Duration::from_millis(nap.milliseconds as u64)).await;
        Ok(Empty::new())
    }

    async fn blob(&self, _: &TtrpcContext, size: Size) -> Result<Payload> {
        Ok(Payload { data: crate::pattern(size.bytes as usize), ..Default::default() })
    }

    async fn metadata(&self, context: &TtrpcContext, _: Empty) -> Result<Pairs> {
        let mut keys: Vec<_> = context.metadata.keys().collect();
        keys.sort();
        let pairs = keys.into_iter().flat_map(|key| {
            let pair = |value: &String| Pair { key: key.clone(), value: value.clone(), ..Default::default() };
            context.metadata[key].iter().map(pair)
        });
        Ok(Pairs { pairs: pairs.collect(), ..Default::default() })
    }
}
