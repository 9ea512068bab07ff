package main

import (
	"context"
	"io"
	"sort"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	pb "conformance/v1"
)

type service struct{}

func (*service) Echo(_ context.Context, request *pb.Payload) (*pb.Payload, error) {
	return &pb.Payload{Seq: request.Seq + 1, Data: request.Data}, nil
}

func (*service) EchoStream(_ context.Context, stream pb.Conformance_EchoStreamServer) error {
	for {
		request, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&pb.Payload{Seq: request.Seq + 1, Data: request.Data}); err != nil {
			return err
		}
	}
}

func (*service) Sum(_ context.Context, stream pb.Conformance_SumServer) (*pb.Total, error) {
	total := &pb.Total{}
	for {
		part, err := stream.Recv()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return nil, err
		}
		total.Sum += part.Value
		total.Count++
	}
}

func (*service) Divide(_ context.Context, total *pb.Total, stream pb.Conformance_DivideServer) error {
	for _, value := range divide(total.Sum, total.Count) {
		if err := stream.Send(&pb.Part{Value: value}); err != nil {
			return err
		}
	}
	return nil
}

// divide gives nothing to the first of several parts, and what is left over to the last.
func divide(sum, count int64) []int64 {
	if count <= 1 {
		return []int64{sum}[:count]
	}
	parts := make([]int64, count)
	for i := range parts[1:] {
		parts[i+1] = sum / (count - 1)
	}
	parts[count-1] += sum % (count - 1)
	return parts
}

func (*service) EchoNull(_ context.Context, stream pb.Conformance_EchoNullServer) (*emptypb.Empty, error) {
	for {
		if _, err := stream.Recv(); err == io.EOF {
			return &emptypb.Empty{}, nil
		} else if err != nil {
			return nil, err
		}
	}
}

func (*service) EchoNullStream(_ context.Context, stream pb.Conformance_EchoNullStreamServer) error {
	var answers sync.WaitGroup
	defer answers.Wait()
	for {
		if _, err := stream.Recv(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		answers.Add(1)
		go func() {
			defer answers.Done()
			stream.Send(&emptypb.Empty{})
		}()
	}
}

func (*service) EmptyRequest(_ context.Context, _ *emptypb.Empty, stream pb.Conformance_EmptyRequestServer) error {
	if err := stream.Send(&pb.Payload{}); err != nil {
		return err
	}
	return stream.Send(&pb.Payload{Seq: 1})
}

func (*service) FailStream(_ context.Context, failure *pb.Failure, stream pb.Conformance_FailStreamServer) error {
	for value := int64(1); value <= int64(failure.After); value++ {
		if err := stream.Send(&pb.Part{Value: value}); err != nil {
			return err
		}
	}
	return status.Error(codes.Code(failure.Code), failure.Message)
}

func (*service) Fail(_ context.Context, failure *pb.Failure) (*emptypb.Empty, error) {
	return nil, status.Error(codes.Code(failure.Code), failure.Message)
}

func (*service) Sleep(ctx context.Context, nap *pb.Nap) (*emptypb.Empty, error) {
	select {
	case <-time.After(time.Duration(nap.Milliseconds) * time.Millisecond):
		return &emptypb.Empty{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (*service) Blob(_ context.Context, size *pb.Size) (*pb.Payload, error) {
	return &pb.Payload{Data: pattern(int(size.Bytes))}, nil
}

func (*service) Metadata(ctx context.Context, _ *emptypb.Empty) (*pb.Pairs, error) {
	answer := &pb.Pairs{}
	metadata, _ := ttrpc.GetMetadata(ctx)
	for key, values := range metadata {
		for _, value := range values {
			answer.Pairs = append(answer.Pairs, &pb.Pair{Key: key, Value: value})
		}
	}
	sort.SliceStable(answer.Pairs, func(i, j int) bool { return answer.Pairs[i].Key < answer.Pairs[j].Key })
	return answer, nil
}
