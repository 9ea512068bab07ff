package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	pb "conformance/v1"
)

const conformance = "shim.conformance.v1.Conformance"

var background = context.Background()

var cases = map[string]func(*outcome) error{
	"echo_empty":               func(o *outcome) error { return o.echo(0, 0) },
	"echo_64":                  func(o *outcome) error { return o.echo(1, 64) },
	"echo_1m":                  func(o *outcome) error { return o.echo(1, 1<<20) },
	"echo_max":                 func(o *outcome) error { return o.echo(1, 4194253) },
	"request_too_large":        func(o *outcome) error { return o.echo(1, 4194254) },
	"echo_stream":              func(o *outcome) error { return o.pingPong(50, 1) },
	"echo_stream_max":          echoStreamMax,
	"echo_stream_unread":       echoStreamUnread,
	"echo_stream_bulk":         echoStreamBulk,
	"echo_stream_stalled":      echoStreamStalled,
	"stream_message_too_large": streamMessageTooLarge,
	"sum":                      func(o *outcome) error { return o.sum(202) },
	"sum_none":                 func(o *outcome) error { return o.sum(0) },
	"divide":                   func(o *outcome) error { return o.divide(30, 0) },
	"divide_none":              func(o *outcome) error { return o.divide(0, 0) },
	"divide_backlog":           func(o *outcome) error { return o.divide(5000, 300*time.Millisecond) },
	"echo_null":                echoNull,
	"echo_null_stream":         echoNullStream,
	"empty_request":            emptyRequest,
	"fail":                     fail,
	"fail_unknown_code":        failUnknownCode,
	"fail_stream":              func(o *outcome) error { return o.failStream(5, 5) },
	"fail_stream_at_once":      func(o *outcome) error { return o.failStream(9, 0) },
	"sleep":                    func(o *outcome) error { return o.sleep(50, 10*time.Second) },
	"sleep_deadline":           sleepDeadline,
	"sleep_deadline_of_server": sleepDeadlineOfServer,
	"unknown_service":          func(o *outcome) error { return o.raw("shim.conformance.v1.Nothing", "Echo") },
	"unknown_method":           func(o *outcome) error { return o.raw(conformance, "Nothing") },
	"unknown_stream":           unknownStream,
	"metadata":                 metadata,
	"blob_max":                 func(o *outcome) error { return o.blob(4194292) },
	"blob_too_large":           func(o *outcome) error { return o.blob(4194295) },
	"concurrent_calls":         concurrentCalls,
	"large_calls":              largeCalls,
	"concurrent_streams":       concurrentStreams,
	"abandoned":                abandoned,
	"abandoned_bidi":           abandonedBidi,
}

func (o *outcome) echo(seq uint32, size int) error {
	request := &pb.Payload{Seq: seq, Data: pattern(size)}
	o.sent(request)
	answer, err := o.stub().Echo(background, request)
	if err != nil {
		return err
	}
	o.received(answer)
	o.compare(request, answer)
	return nil
}

func (o *outcome) compare(request, answer *pb.Payload) {
	if answer.Seq != request.Seq+1 || !bytes.Equal(answer.Data, request.Data) {
		o.problem("payload %d came back as %d with %d bytes", request.Seq, answer.Seq, len(answer.Data))
	}
}

// pingPong sends `count` payloads, one after the answer to the other, then expects the end.
func (o *outcome) pingPong(count, step int) error {
	stream, err := o.stub().EchoStream(background)
	if err != nil {
		return err
	}
	for i := range count {
		request := &pb.Payload{Seq: uint32(i), Data: pattern(i * step)}
		if err := o.ping(stream, request); err != nil {
			return err
		}
	}
	return o.endOfEcho(stream)
}

func (o *outcome) ping(stream pb.Conformance_EchoStreamClient, request *pb.Payload) error {
	if err := stream.Send(request); err != nil {
		return err
	}
	o.sent(request)
	answer, err := stream.Recv()
	if err != nil {
		return err
	}
	o.received(answer)
	o.compare(request, answer)
	return nil
}

func (o *outcome) endOfEcho(stream pb.Conformance_EchoStreamClient) error {
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return o.expectEnd(stream.Recv())
}

func (o *outcome) expectEnd(message proto.Message, err error) error {
	if err == nil {
		o.received(message)
		o.problem("a message where the end should be")
		return nil
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func echoStreamMax(o *outcome) error {
	stream, err := o.stub().EchoStream(background)
	if err != nil {
		return err
	}
	if err := o.ping(stream, &pb.Payload{Seq: 1, Data: pattern(4194297)}); err != nil {
		return err
	}
	return o.endOfEcho(stream)
}

// echoStreamUnread sends all before the first answer is read.
func echoStreamUnread(o *outcome) error {
	stream, err := o.stub().EchoStream(background)
	if err != nil {
		return err
	}
	if err := o.sendEcho(stream, 60, 1000); err != nil {
		return err
	}
	return o.readEcho(stream, 60, 1000)
}

// echoStreamBulk sends and reads 16 MiB at the same time.
func echoStreamBulk(o *outcome) error {
	stream, err := o.stub().EchoStream(background)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- o.sendEcho(stream, 64, 256<<10) }()
	if err := o.readEcho(stream, 64, 256<<10); err != nil {
		return err
	}
	return <-failed
}

// echoStreamStalled calls while a stream that nobody reads has filled both directions.
func echoStreamStalled(o *outcome) error {
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	stream, err := o.stub().EchoStream(ctx)
	if err != nil {
		return err
	}
	go func() {
		for i := range 5000 {
			if stream.Send(&pb.Payload{Seq: uint32(i), Data: pattern(5000)}) != nil {
				return
			}
		}
	}()
	time.Sleep(300 * time.Millisecond)
	return o.echo(1, 64)
}

func (o *outcome) sendEcho(stream pb.Conformance_EchoStreamClient, count, size int) error {
	for i := range count {
		request := &pb.Payload{Seq: uint32(i), Data: pattern(size)}
		if err := stream.Send(request); err != nil {
			return err
		}
		o.sent(request)
	}
	return stream.CloseSend()
}

func (o *outcome) readEcho(stream pb.Conformance_EchoStreamClient, count, size int) error {
	for i := range count {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		o.received(answer)
		o.compare(&pb.Payload{Seq: uint32(i), Data: pattern(size)}, answer)
	}
	return o.expectEnd(stream.Recv())
}

// streamMessageTooLarge tells by its status how the message was refused; the stream goes on.
func streamMessageTooLarge(o *outcome) error {
	stream, err := o.stub().EchoStream(background)
	if err != nil {
		return err
	}
	if err := o.ping(stream, &pb.Payload{Seq: 1}); err != nil {
		return err
	}
	code, _ := describe(stream.Send(&pb.Payload{Seq: 2, Data: pattern(4194298)}))
	o.Statuses = append(o.Statuses, []any{code, ""})
	if err := o.ping(stream, &pb.Payload{Seq: 3}); err != nil {
		return err
	}
	return o.endOfEcho(stream)
}

func (o *outcome) sum(count int) error {
	stream, err := o.stub().Sum(background)
	if err != nil {
		return err
	}
	expected := &pb.Total{Count: int64(count)}
	for i := range count {
		part := &pb.Part{}
		if i%2 == 1 {
			part.Value = int64(i*i - 10000)
		}
		expected.Sum += part.Value
		if err := stream.Send(part); err != nil {
			return err
		}
		o.sent(part)
	}
	total, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	o.received(total)
	if !proto.Equal(expected, total) {
		o.problem("total is %v, not %v", total, expected)
	}
	return nil
}

func (o *outcome) divide(count int64, pause time.Duration) error {
	request := &pb.Total{Sum: 1000003, Count: count}
	o.sent(request)
	stream, err := o.stub().Divide(background, request)
	if err != nil {
		return err
	}
	time.Sleep(pause)
	expected := divide(request.Sum, count)
	for i := range expected {
		part, err := stream.Recv()
		if err != nil {
			return err
		}
		o.received(part)
		if part.Value != expected[i] {
			o.problem("part %d is %d, not %d", i, part.Value, expected[i])
		}
	}
	return o.expectEnd(stream.Recv())
}

func echoNull(o *outcome) error {
	stream, err := o.stub().EchoNull(background)
	if err != nil {
		return err
	}
	for i := range 100 {
		request := &pb.Payload{Seq: uint32(i), Data: pattern(16)}
		if err := stream.Send(request); err != nil {
			return err
		}
		o.sent(request)
	}
	answer, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	o.received(answer)
	return nil
}

func echoNullStream(o *outcome) error {
	stream, err := o.stub().EchoNullStream(background)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() {
		for i := range 100 {
			request := &pb.Payload{Seq: uint32(i), Data: pattern(16)}
			if err := stream.Send(request); err != nil {
				failed <- err
				return
			}
			o.sent(request)
		}
		failed <- stream.CloseSend()
	}()
	for range 100 {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		o.received(answer)
	}
	if err := <-failed; err != nil {
		return err
	}
	return o.expectEnd(stream.Recv())
}

func emptyRequest(o *outcome) error {
	request := &emptypb.Empty{}
	o.sent(request)
	stream, err := o.stub().EmptyRequest(background, request)
	if err != nil {
		return err
	}
	for seq := range uint32(2) {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		o.received(answer)
		if answer.Seq != seq || len(answer.Data) != 0 {
			o.problem("payload %d is %v", seq, answer)
		}
	}
	return o.expectEnd(stream.Recv())
}

func fail(o *outcome) error {
	for code := int32(1); code <= 16; code++ {
		request := &pb.Failure{Code: code, Message: fmt.Sprintf("reason %d ü", code)}
		o.sent(request)
		_, err := o.stub().Fail(background, request)
		number, message := describe(err)
		o.Statuses = append(o.Statuses, []any{number, message})
	}
	return nil
}

func failUnknownCode(o *outcome) error {
	request := &pb.Failure{Code: 99, Message: "unheard of"}
	o.sent(request)
	_, err := o.stub().Fail(background, request)
	return err
}

func (o *outcome) failStream(code, after int32) error {
	request := &pb.Failure{Code: code, Message: "no more", After: after}
	o.sent(request)
	stream, err := o.stub().FailStream(background, request)
	if err != nil {
		return err
	}
	for value := int64(1); value <= int64(after); value++ {
		part, err := stream.Recv()
		if err != nil {
			return err
		}
		o.received(part)
		if part.Value != value {
			o.problem("part %d is %d", value, part.Value)
		}
	}
	return o.expectEnd(stream.Recv())
}

func (o *outcome) sleep(milliseconds int64, timeout time.Duration) error {
	request := &pb.Nap{Milliseconds: milliseconds}
	o.sent(request)
	ctx, cancel := context.WithTimeout(background, timeout)
	defer cancel()
	answer, err := o.stub().Sleep(ctx, request)
	if err == nil {
		o.received(answer)
	}
	return err
}

// sleepDeadline stays until a late answer would have come.
func sleepDeadline(o *outcome) error {
	began := time.Now()
	err := o.sleep(1000, 200*time.Millisecond)
	if took := time.Since(began); took > 900*time.Millisecond {
		o.problem("the deadline came after %v", took)
	}
	time.Sleep(time.Until(began.Add(1200 * time.Millisecond)))
	return err
}

func sleepDeadlineOfServer(o *outcome) error {
	request := &pb.Nap{Milliseconds: 1000}
	o.sent(request)
	_, err := o.stub().Sleep(withHiddenTimeout(background, 200*time.Millisecond), request)
	return err
}

func (o *outcome) raw(service, method string) error {
	request := &pb.Payload{Seq: 1}
	o.sent(request)
	return o.client.Call(background, service, method, request, &pb.Payload{})
}

func unknownStream(o *outcome) error {
	request := &pb.Payload{Seq: 1}
	o.sent(request)
	stream, err := o.client.NewStream(background, &ttrpc.StreamDesc{StreamingServer: true}, conformance, "NothingStream", request)
	if err != nil {
		return err
	}
	answer := &pb.Payload{}
	return o.expectEnd(answer, stream.RecvMsg(answer))
}

func metadata(o *outcome) error {
	request := &emptypb.Empty{}
	o.sent(request)
	md := ttrpc.MD{}
	md.Set("shim-test", "b", "a", "b")
	md.Set("Other-Key", "ü")
	answer, err := o.stub().Metadata(ttrpc.WithMetadata(background, md), request)
	if err != nil {
		return err
	}
	o.received(answer)
	for _, pair := range answer.Pairs {
		o.Pairs = append(o.Pairs, []string{pair.Key, pair.Value})
	}
	return nil
}

func (o *outcome) blob(size int64) error {
	request := &pb.Size{Bytes: size}
	o.sent(request)
	answer, err := o.stub().Blob(background, request)
	if err != nil {
		return err
	}
	o.received(answer)
	if !bytes.Equal(answer.Data, pattern(int(size))) {
		o.problem("the blob has %d other bytes", len(answer.Data))
	}
	return nil
}

func concurrentCalls(o *outcome) error {
	return concurrently(64, func(i int) error { return o.echo(uint32(i), i*1000) })
}

// largeCalls fills both directions of the socket.
func largeCalls(o *outcome) error {
	return concurrently(8, func(i int) error {
		for range 20 {
			if err := o.echo(uint32(i), 200000); err != nil {
				return err
			}
		}
		return nil
	})
}

func concurrentStreams(o *outcome) error {
	return concurrently(10, func(i int) error { return o.pingPong(20, 100*i) })
}

func concurrently(count int, run func(i int) error) error {
	errs := make([]error, count)
	var all sync.WaitGroup
	for i := range count {
		all.Add(1)
		go func() {
			defer all.Done()
			errs[i] = run(i)
		}()
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// abandoned leaves a stream while its answers arrive.
func abandoned(o *outcome) error {
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	request := &pb.Total{Sum: 1000003, Count: 50}
	o.sent(request)
	stream, err := o.stub().Divide(ctx, request)
	if err != nil {
		return err
	}
	for range 2 {
		part, err := stream.Recv()
		if err != nil {
			return err
		}
		o.received(part)
	}
	return nil
}

// abandonedBidi leaves a stream that the server still waits on.
func abandonedBidi(o *outcome) error {
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	stream, err := o.stub().EchoStream(ctx)
	if err != nil {
		return err
	}
	for i := range 3 {
		if err := o.ping(stream, &pb.Payload{Seq: uint32(i)}); err != nil {
			return err
		}
	}
	return nil
}
