package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// sidecarProcess is a sidecar without an application: a DTM door alone.
type sidecarProcess struct {
	address string // of the door, host:port
	dir     string // of its journal and its log
	cmd     *exec.Cmd
	stdout  io.Reader
}

// startSidecar builds the sidecar of this module and starts it on free ports.
func startSidecar(ctx context.Context) (*sidecarProcess, error) {
	dir, err := os.MkdirTemp("", "dtm-quickstart-")
	if err != nil {
		return nil, err
	}
	s := &sidecarProcess{dir: dir}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *sidecarProcess) start(ctx context.Context) error {
	program := filepath.Join(s.dir, "txmesh-sidecar")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "txmesh/cmd/txmesh-sidecar")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the sidecar; run this inside of its module: %w\n%s", err, out)
	}
	log, err := os.Create(s.log())
	if err != nil {
		return err
	}
	defer log.Close()
	// It outlives a signal to this process until stop: its end is a signal of its own.
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), program, "--dtm", "127.0.0.1:0", "--api", "127.0.0.1:0", "--peer", "127.0.0.1:0",
		"--data-dir", filepath.Join(s.dir, "data"))
	s.cmd.Stderr = log
	if s.stdout, err = s.cmd.StdoutPipe(); err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		s.cmd = nil
		return fmt.Errorf("start the sidecar: %w", err)
	}
	var ready struct {
		DTM string `json:"dtm"`
	}
	line, err := bufio.NewReader(s.stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &ready)
	}
	if err != nil || ready.DTM == "" {
		text, _ := os.ReadFile(s.log()) // without it, the error alone must do
		return fmt.Errorf("start the sidecar: it says %q: %w\n%s", line, err, text)
	}
	s.address = ready.DTM
	return nil
}

func (s *sidecarProcess) log() string { return filepath.Join(s.dir, "log") }

// stop ends the sidecar and removes its folder.
func (s *sidecarProcess) stop() error {
	var err error
	if s.cmd != nil {
		err = s.cmd.Process.Signal(syscall.SIGTERM)
		if errors.Is(err, os.ErrProcessDone) {
			err = nil
		}
		err = errors.Join(err, s.cmd.Wait())
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}
