package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"sort"
	"sync"
	"syscall"
	"time"

	pb "bench/v1"
)

const partsOfOneDownload = 500

// command and figures are those of tests/bench_ttrpc/loads.py.
type command struct {
	Kind    string  `json:"kind"`
	Callers int     `json:"callers"`
	Size    int     `json:"size"`
	Seconds float64 `json:"seconds"`
}

type figures struct {
	Calls   int     `json:"calls"`
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu_s"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
}

func load(client pb.ConformanceClient, told command) (figures, error) {
	request := &pb.Payload{Seq: 1, Data: make([]byte, told.Size)}
	if _, err := rand.Read(request.Data); err != nil {
		return figures{}, err
	}
	cpu, began := cpuTime(), time.Now()
	until := began.Add(time.Duration(told.Seconds * float64(time.Second)))
	var times []time.Duration
	var calls int
	var err error
	switch told.Kind {
	case "upload":
		calls, err = upload(client, request, until)
	case "download":
		calls, err = download(client, until)
	case "ping-pong":
		times, err = pingPong(client, request, until)
		calls = len(times)
	default:
		times, err = unary(client, request, told.Callers, until)
		calls = len(times)
	}
	if err != nil {
		return figures{}, err
	}
	result := figures{Calls: calls, Seconds: time.Since(began).Seconds(), CPU: cpuTime() - cpu}
	if len(times) > 0 {
		sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
		result.P50 = float64(times[len(times)/2].Nanoseconds()) / 1e3
		result.P99 = float64(times[len(times)*99/100].Nanoseconds()) / 1e3
	}
	return result, nil
}

func unary(client pb.ConformanceClient, request *pb.Payload, callers int, until time.Time) ([]time.Duration, error) {
	var waiting sync.WaitGroup
	results, errs := make([][]time.Duration, callers), make([]error, callers)
	for i := range callers {
		waiting.Add(1)
		go func() {
			defer waiting.Done()
			results[i], errs[i] = timed(request, until, func() (*pb.Payload, error) {
				return client.Echo(context.Background(), request)
			})
		}()
	}
	waiting.Wait()
	var all []time.Duration
	for i := range callers {
		if errs[i] != nil {
			return nil, errs[i]
		}
		all = append(all, results[i]...)
	}
	return all, nil
}

func timed(request *pb.Payload, until time.Time, call func() (*pb.Payload, error)) ([]time.Duration, error) {
	var times []time.Duration
	for before := time.Now(); before.Before(until); {
		answered, err := call()
		if err != nil {
			return nil, err
		}
		if answered.Seq != request.Seq+1 || len(answered.Data) != len(request.Data) {
			return nil, fmt.Errorf("echo of %d bytes came back with %d", len(request.Data), len(answered.Data))
		}
		after := time.Now()
		times = append(times, after.Sub(before))
		before = after
	}
	return times, nil
}

func pingPong(client pb.ConformanceClient, request *pb.Payload, until time.Time) ([]time.Duration, error) {
	stream, err := client.EchoStream(context.Background())
	if err != nil {
		return nil, err
	}
	times, err := timed(request, until, func() (*pb.Payload, error) {
		if err := stream.Send(request); err != nil {
			return nil, err
		}
		return stream.Recv()
	})
	if err != nil {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	if _, err := stream.Recv(); err != io.EOF {
		return nil, fmt.Errorf("the stream ended with %v", err)
	}
	return times, nil
}

func upload(client pb.ConformanceClient, request *pb.Payload, until time.Time) (int, error) {
	stream, err := client.EchoNull(context.Background())
	if err != nil {
		return 0, err
	}
	sent := 0
	for ; time.Now().Before(until); sent++ {
		if err := stream.Send(request); err != nil {
			return 0, err
		}
	}
	_, err = stream.CloseAndRecv()
	return sent, err
}

func download(client pb.ConformanceClient, until time.Time) (int, error) {
	received := 0
	for time.Now().Before(until) {
		total := &pb.Total{Sum: partsOfOneDownload, Count: partsOfOneDownload}
		stream, err := client.Divide(context.Background(), total)
		if err != nil {
			return 0, err
		}
		for {
			if _, err := stream.Recv(); err == io.EOF {
				break
			} else if err != nil {
				return 0, err
			}
			received++
		}
	}
	return received, nil
}

func cpuTime() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(usage.Utime) + seconds(usage.Stime)
}
