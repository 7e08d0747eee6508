package mqi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"mqtt-integration/libs/daemon"
	"mqtt-integration/libs/grpcclient"
	adminv1 "mqtt-integration/proto/gen/mqttintegration/admin/v1"
)

// session is what a command has at hand.
type session struct {
	ctx    context.Context //nolint:containedctx // kong's Run has none, and a process is one command
	cli    *commands
	stdout io.Writer
	stderr io.Writer
	apiKey string // from the environment

	connection *grpc.ClientConn
}

func (s *session) close() {
	if s.connection != nil {
		_ = s.connection.Close()
	}
}

// client returns a client and a context that signs in.
func (s *session) client() (adminv1.AdminServiceClient, context.Context, error) {
	authorization, err := s.authorization()
	if err != nil {
		return nil, nil, err
	}
	s.connection, err = grpcclient.New(grpcclient.Config{
		Addresses: []string{s.cli.Server}, Insecure: s.cli.Insecure, Timeout: s.cli.Timeout,
		TLS: grpcclient.TLS{
			CertFile: s.cli.CertFile, KeyFile: s.cli.KeyFile, CAFile: s.cli.CAFile, ServerName: s.cli.ServerName,
		},
	}, daemon.NewEnv(nil))
	if err != nil {
		return nil, nil, usageError{fmt.Sprintf("--server: %v", err)}
	}
	return adminv1.NewAdminServiceClient(s.connection), metadata.AppendToOutgoingContext(s.ctx, "authorization", authorization), nil
}

// authorization is the header that signs in.
func (s *session) authorization() (string, error) {
	c := s.cli
	token, key := c.Token, s.apiKey
	var err error
	switch {
	case token != "" && c.TokenFile != "":
		return "", usageError{"a token and a token file are given; only one of them is possible"}
	case key != "" && c.APIKeyFile != "":
		return "", usageError{"MQI_API_KEY and --api-key-file are given; only one of them is possible"}
	case c.TokenFile != "":
		if token, err = secretFile(c.TokenFile); err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
	case c.APIKeyFile != "":
		if key, err = secretFile(c.APIKeyFile); err != nil {
			return "", fmt.Errorf("--api-key-file: %w", err)
		}
	}
	switch {
	case token != "" && (c.User != "" || c.APIKeyFile != ""):
		return "", usageError{"a token and a user are given; only one of them can sign in"}
	case token != "":
		return "Bearer " + token, nil
	case c.User != "" && key != "":
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.User+":"+key)), nil
	case c.User != "":
		return "", usageError{"--user needs an API key: MQI_API_KEY or --api-key-file"}
	case key != "":
		return "", usageError{"an API key needs --user, its owner's login name"}
	default:
		return "", usageError{"no credentials: set MQI_TOKEN or --token-file, or --user with MQI_API_KEY or --api-key-file"}
	}
}

// table is what a command shows.
type table struct {
	header []string
	rows   [][]string
}

// show prints a message as JSON, or as a table.
func (s *session) show(message proto.Message, t table) error {
	if s.cli.Output == "json" {
		return s.showJSON(message)
	}
	w := tabwriter.NewWriter(s.stdout, 0, 4, 2, ' ', 0)
	if _, err := fmt.Fprintln(w, strings.Join(t.header, "\t")); err != nil {
		return err
	}
	for _, row := range t.rows {
		for i := range row {
			row[i] = printable(row[i])
		}
		if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

func (s *session) showJSON(message proto.Message) error {
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
	if err != nil {
		return err
	}
	// protojson varies its spaces on purpose; scripts and people want them fixed.
	var indented bytes.Buffer
	if err := json.Indent(&indented, data, "", "  "); err != nil {
		return err
	}
	indented.WriteByte('\n')
	_, err = indented.WriteTo(s.stdout)
	return err
}

// done is for commands that have nothing to show.
func (s *session) done(message proto.Message) error {
	if s.cli.Output == "json" {
		return s.showJSON(message)
	}
	return nil
}

// printable keeps names that others chose from controlling the terminal.
func printable(text string) string {
	if text == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return '\uFFFD'
		}
		return r
	}, text)
}

func timeText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}
