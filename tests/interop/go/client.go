package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "conformance/v1"
)

// What cannot be put into a status: the connection has ended.
const closed = -1

// traffic counts messages and their encoded bytes.
type traffic [2]int

// outcome is the line of JSON that the driver reads.
type outcome struct {
	Case     string     `json:"case"`
	Code     int        `json:"code"`
	Message  string     `json:"message"`
	Sent     traffic    `json:"sent"`
	Received traffic    `json:"received"`
	Statuses [][]any    `json:"statuses"`
	Pairs    [][]string `json:"pairs"`
	Problems []string   `json:"problems"`
	Alive    bool       `json:"alive"`

	lock   sync.Mutex
	client *ttrpc.Client
}

// attempt runs one case on a connection of its own and ends with one more call on it.
func attempt(socket, name string) *outcome {
	o := &outcome{Case: name, Statuses: [][]any{}, Pairs: [][]string{}, Problems: []string{}}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		o.finish(err)
		return o
	}
	o.client = ttrpc.NewClient(conn, ttrpc.WithUnaryClientInterceptor(hiddenTimeout))
	defer o.client.Close()
	run, ok := cases[name]
	if !ok {
		o.problem("no such case")
		return o
	}
	o.finish(run(o))
	answer, err := o.stub().Echo(context.Background(), &pb.Payload{Seq: 7})
	o.Alive = err == nil && answer.Seq == 8
	return o
}

func (o *outcome) stub() pb.ConformanceClient { return pb.NewConformanceClient(o.client) }

func (o *outcome) finish(err error) { o.Code, o.Message = describe(err) }

func describe(err error) (int, string) {
	if err == nil {
		return int(codes.OK), ""
	}
	if errors.Is(err, ttrpc.ErrClosed) {
		return closed, "closed"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return int(codes.DeadlineExceeded), "deadline"
	}
	// A refusal to send comes in a wrapper that has no status of its own.
	var oversized *ttrpc.OversizedMessageErr
	if errors.As(err, &oversized) {
		err = oversized.Unwrap()
	}
	s, _ := status.FromError(err)
	return int(s.Code()), s.Message()
}

func (o *outcome) sent(message proto.Message)     { o.count(&o.Sent, message) }
func (o *outcome) received(message proto.Message) { o.count(&o.Received, message) }

func (o *outcome) count(counter *traffic, message proto.Message) {
	o.lock.Lock()
	defer o.lock.Unlock()
	counter[0]++
	counter[1] += proto.Size(message)
}

func (o *outcome) problem(format string, values ...any) {
	o.lock.Lock()
	defer o.lock.Unlock()
	o.Problems = append(o.Problems, fmt.Sprintf(format, values...))
}

type hidden struct{}

// withHiddenTimeout tells the server of a deadline that the client itself does not keep.
func withHiddenTimeout(ctx context.Context, timeout time.Duration) context.Context {
	return context.WithValue(ctx, hidden{}, timeout)
}

func hiddenTimeout(ctx context.Context, request *ttrpc.Request, response *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	if timeout, ok := ctx.Value(hidden{}).(time.Duration); ok {
		request.TimeoutNano = timeout.Nanoseconds()
	}
	return invoke(ctx, request, response)
}

func pattern(size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i % 251)
	}
	return data
}
