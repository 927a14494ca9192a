// The bare client of src/tidemill/bench/bare.py in Go, with Go's HTTP client: `make bench GO=1` measures against it.
//
//	go build -o bare tests/bare.go && ./bare URL IN_FLIGHT - INPUT...
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func cpuSeconds() float64 {
	var used syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	return float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func read(inputs []string, bodies chan<- []byte) {
	for _, name := range inputs {
		file, err := os.Open(name)
		check(err)
		lines := bufio.NewReaderSize(file, 1<<20)
		for {
			line, err := lines.ReadBytes('\n')
			if err == io.EOF {
				break
			}
			check(err)
			bodies <- line[bytes.Index(line, []byte(`"body":`))+len(`"body":`) : len(line)-2]
		}
	}
	close(bodies)
}

// call makes a call, and makes it again when the server refused it and says when to.
func call(client *http.Client, url string, body []byte, calls *atomic.Int64) {
	for {
		calls.Add(1)
		answer, err := client.Post(url, "application/json", bytes.NewReader(body))
		check(err)
		_, err = io.Copy(io.Discard, answer.Body)
		check(err)
		answer.Body.Close()
		if answer.StatusCode == http.StatusOK {
			return
		}
		seconds, err := strconv.Atoi(answer.Header.Get("Retry-After"))
		check(err)
		time.Sleep(time.Duration(seconds) * time.Second)
	}
}

func main() {
	url, inputs := os.Args[1], os.Args[4:]
	inFlight, err := strconv.Atoi(os.Args[2])
	check(err)
	if os.Args[3] != "-" {
		check(fmt.Errorf("changes of the calls in flight are not supported"))
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: inFlight}}
	var calls atomic.Int64
	var workers sync.WaitGroup
	bodies := make(chan []byte, inFlight)
	began, cpu := time.Now(), cpuSeconds()
	for range inFlight {
		workers.Go(func() {
			for body := range bodies {
				call(client, url, body, &calls)
			}
		})
	}
	read(inputs, bodies)
	workers.Wait()
	fmt.Printf("{\"calls\": %d, \"seconds\": %f, \"cpu_seconds\": %f}\n",
		calls.Load(), time.Since(began).Seconds(), cpuSeconds()-cpu)
}
